/* Opening and closing the cpu backend, and what passes for device memory on it. */
#include "common/memory.h"
#include "common/sizes.h"
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <cblas.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static ingot_status cpu_alloc(void *context, void **out, uint64_t bytes) {
    (void)context;
    *out = NULL;
    return ingot_device_fault_is_due() ? INGOT_ERR_NO_MEMORY : ingot_alloc(out, bytes);
}

static ingot_status cpu_host_alloc(void *context, void **out, uint64_t bytes) {
    (void)context;
    return ingot_alloc(out, bytes);
}

static void cpu_release(void *context, void *memory) {
    (void)context;
    ingot_free(memory);
}

static ingot_status cpu_copy(void *context, void *to, const void *from, uint64_t bytes) {
    (void)context;
    if (to != from && bytes != 0) {
        memcpy(to, from, bytes);
    }
    return INGOT_OK;
}

static ingot_status cpu_copy_rows(void *context, void *to, uint64_t to_stride, const void *from,
                                  uint64_t from_stride, uint64_t bytes, uint64_t rows) {
    for (uint64_t i = 0; i < rows; i++) {
        (void)cpu_copy(context, (char *)to + i * to_stride, (const char *)from + i * from_stride,
                       bytes);
    }
    return INGOT_OK;
}

static ingot_status cpu_zero(void *context, void *memory, uint64_t bytes) {
    (void)context;
    memset(memory, 0, bytes);
    return INGOT_OK;
}

static ingot_status cpu_fetch(void *context, void *to, void *from_context, const void *from,
                              uint64_t bytes) {
    (void)from_context;
    return cpu_copy(context, to, from, bytes);
}

static ingot_status cpu_wait(void *context) {
    (void)context;
    return INGOT_OK;
}

static uint64_t cpu_peak_bytes(void *context) {
    (void)context;
    return 0;
}

static ingot_status cpu_download_view(void *context, ingot_weight_view *host,
                                      const ingot_weight_view *device, ingot_arena *arena) {
    (void)context;
    (void)arena;
    *host = *device;
    return INGOT_OK;
}

static ingot_status cpu_upload_view(void *context, ingot_weight_view *device,
                                    const ingot_weight_view *host) {
    (void)context;
    *device = *host;
    return INGOT_OK;
}

static void cpu_release_view(void *context, ingot_weight_view *device) {
    (void)context;
    memset(device, 0, sizeof *device);
}

static void cpu_close(void *context) {
    ingot_cpu *cpu = context;
    if (cpu == NULL) {
        return;
    }
    ingot_pool_destroy(cpu->pool);
    ingot_free(cpu->scratch);
    ingot_free(cpu->flags);
    ingot_free(cpu);
}

static const ingot_backend_ops cpu_ops = {
    .name = "cpu",
    .alloc = cpu_alloc,
    .release = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy,
    .copy_rows = cpu_copy_rows,
    .fetch = cpu_fetch,
    .zero = cpu_zero,
    .host_alloc = cpu_host_alloc,
    .host_release = cpu_release,
    .wait = cpu_wait,
    .peak_bytes = cpu_peak_bytes,
    .upload_view = cpu_upload_view,
    .release_view = cpu_release_view,
    .download_view = cpu_download_view,
    .embed = ingot_cpu_embed,
    .norm = ingot_cpu_norm,
    .linear = ingot_cpu_linear,
    .rotary = ingot_cpu_rotary,
    .attention = ingot_cpu_attention,
    .activate = ingot_cpu_activate,
    .add = ingot_cpu_add,
    .norm_backward = ingot_cpu_norm_backward,
    .linear_backward = ingot_cpu_linear_backward,
    .weight_backward = ingot_cpu_weight_backward,
    .activate_backward = ingot_cpu_activate_backward,
    .attention_backward = ingot_cpu_attention_backward,
    .gram = ingot_cpu_gram,
    .drift = ingot_cpu_drift,
    .distance = ingot_cpu_distance,
    .inner = ingot_cpu_inner,
    .score = ingot_cpu_score,
    .draw = ingot_cpu_draw,
    .divergence = ingot_cpu_divergence,
    .divergence_backward = ingot_cpu_divergence_backward,
    .values = ingot_cpu_values,
    .gram_fold = ingot_cpu_gram_fold,
    .gram_diagonal = ingot_cpu_gram_diagonal,
    .factorize = ingot_cpu_factorize,
    .quantize_rtn = ingot_cpu_rtn,
    .quantize_search = ingot_cpu_search,
    .quantize_gptq = ingot_cpu_gptq,
    .outliers_choose = ingot_cpu_outliers_choose,
    .outliers_place = ingot_cpu_outliers_place,
    .quantized_values = ingot_cpu_quantized_values,
    .quantized_pack = ingot_cpu_pack,
    .weight_error = ingot_cpu_weight_error,
    .quadratic_loss = ingot_cpu_quadratic_loss,
    .gram_solve = ingot_cpu_gram_solve,
    .multiply_add = ingot_cpu_multiply_add,
    .quantize_polish = ingot_cpu_polish,
    .tuning_begin = ingot_cpu_tuning_begin,
    .tuning_round = ingot_cpu_tuning_round,
    .tuning_step = ingot_cpu_tuning_step,
    .scale_backward = ingot_cpu_scale_backward,
    .scale_step = ingot_cpu_scale_step,
    .close = cpu_close,
};

/* ---- the work buffers of OpenBLAS ------------------------------------------------------------ */

/* Of OpenBLAS's memory.c; without a header.  Buffers that were given back are kept for later. */
void *blas_memory_alloc(int procpos);
void blas_memory_free(void *buffer);

#define BLAS_BUFFER_BYTES (UINT64_C(129) << 20) /* 128 MiB and a page, on x86-64 */
#define BLAS_BUFFERS_MOST 64u /* the table of a small build of OpenBLAS has room for them */

/* Makes a work buffer for every thread now: OpenBLAS asks for it again and again, for ever, where
 * there is no memory for it.  Only address space is taken until a buffer is used. */
static ingot_status make_blas_buffers(unsigned threads) {
    const size_t bytes = (size_t)(threads * BLAS_BUFFER_BYTES);
    void *memory;
    void *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        return INGOT_ERR_NO_MEMORY;
    }
    (void)munmap(room, bytes);
    INGOT_TRY(ingot_alloc(&memory, threads * sizeof(void *)));
    void **buffers = memory;
    for (unsigned i = 0; i < threads; i++) {
        buffers[i] = blas_memory_alloc(0);
    }
    for (unsigned i = 0; i < threads; i++) {
        blas_memory_free(buffers[i]);
    }
    ingot_free(buffers);
    return INGOT_OK;
}

static ingot_status fill(ingot_cpu *cpu, unsigned threads) {
    void *memory;
    INGOT_TRY(ingot_pool_create(&cpu->pool, threads));
    const unsigned started = ingot_pool_threads(cpu->pool);
    INGOT_TRY(make_blas_buffers(started < BLAS_BUFFERS_MOST ? started : BLAS_BUFFERS_MOST));
    const uint64_t scratch_bytes =
        (uint64_t)ingot_pool_threads(cpu->pool) * INGOT_CPU_SCRATCH_FLOATS * sizeof(float);
    INGOT_TRY(ingot_alloc(&memory, scratch_bytes));
    cpu->scratch = memory;
    INGOT_TRY(ingot_alloc(&memory, INGOT_CPU_GRAM_ROWS));
    cpu->flags = memory;
    return INGOT_OK;
}

ingot_status ingot_cpu_open(ingot_backend *out, unsigned threads, ingot_error *error) {
    memset(out, 0, sizeof *out);
    const ingot_cpu_isa *isa = ingot_cpu_isa_select();
    if (isa == NULL) {
        return ingot_error_set(error, INGOT_ERR_DEVICE, NULL, NULL,
                               "unset INGOT_CPU_ISA, or set it to v2, v3 or v4",
                               "this processor lacks the instruction set asked for; x86-64-v2 "
                               "is the least Ingot runs on");
    }
    void *memory;
    ingot_status status = ingot_alloc_zero(&memory, 1, sizeof(ingot_cpu));
    if (status == INGOT_OK) {
        ingot_cpu *cpu = memory;
        cpu->isa = isa;
        status = fill(cpu, threads);
        ingot_device_fault_arm();
        if (status == INGOT_OK) {
            /* BLAS never starts threads of its own: its results would depend on their number. */
            openblas_set_num_threads(1);
            out->ops = &cpu_ops;
            assert(ingot_cpu_chooses_core);
            out->context = cpu;
            out->pool = cpu->pool;
            out->batch_tokens = INGOT_CPU_BATCH_TOKENS;
            (void)snprintf(out->path, sizeof out->path, "cpu/%s/%s", isa->name,
                           openblas_get_corename());
            return INGOT_OK;
        }
        cpu_close(cpu);
    }
    return ingot_error_set(error, status, NULL, NULL, "use fewer threads or free some memory",
                           "the cpu backend could not be started: %s", ingot_status_text(status));
}
