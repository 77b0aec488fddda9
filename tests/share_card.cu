/* Several processes on one card, each with products of cuBLAS in a loop: the failure of decision
 * 0032 by itself, with nothing of Ingot in it.
 *
 *   share_card FORM PROCESSES SECONDS [LEFT_OUT]
 *
 * FORM is how the factors of c[1536][576] and the like are stored, in the words of BLAS: nt (a
 * gradient by weights: both factors turned), tt, tn, nn.  Between products run kernels of other
 * shares of L1 and shared memory, and memory is taken from the stream and given back; LEFT_OUT k
 * leaves out the kernels, m the memory, km both.  Every eighth round results are compared with the
 * first.  Exit code 1: a process failed, or a result differed. */
#include <cublas_v2.h>
#include <cuda_fp16.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#define THREADS   256
#define MOST      ((size_t)1536 * 16384) /* elements of a factor */
#define PLACES    ((size_t)4 << 20)      /* floats that the other kernels pass over */
#define WORKSPACE ((size_t)32 << 20)

typedef struct shape {
    int rows, columns, depth;
} shape;

typedef struct loop {
    const char *form;
    bool has_kernels, has_memory;
    cudaStream_t stream;
    cublasHandle_t blas;
    void *workspace;
    __half *a, *b;
    float *c, *places, *scalars; /* scalars: two ones */
    unsigned long products;
} loop;

static double seconds_now(void) {
    timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void require(const loop *l, int status, const char *what) {
    if (status != 0) {
        printf("%s: %s failed (%d) after %lu products: %s\n", l->form, what, status, l->products,
               cudaGetErrorString(cudaGetLastError()));
        (void)fflush(stdout);
        _exit(1); /* a context that failed cannot be taken down */
    }
}
#define REQUIRE(l, call) require((l), (int)(call), #call)

__global__ static void fill_kernel(__half *x, size_t count, unsigned seed) {
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count;
         i += (size_t)gridDim.x * THREADS) {
        unsigned z = (unsigned)i * 2654435761u + seed;
        z = (z ^ z >> 15) * 2246822519u;
        x[i] = __float2half((float)(int)(z ^ z >> 13) * 0x1p-31f);
    }
}

__global__ static void pass_kernel(float *x, size_t count) {
    extern __shared__ float shared[];
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count;
         i += (size_t)gridDim.x * THREADS) {
        shared[threadIdx.x] = x[i];
        x[i] = fminf(shared[threadIdx.x] * 1.0001f, 1.0f);
    }
}

static void begin(loop *l) {
    const float ones[2] = {1, 1};
    REQUIRE(l, cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking));
    REQUIRE(l, cublasCreate(&l->blas));
    REQUIRE(l, cublasSetStream(l->blas, l->stream));
    REQUIRE(l, cudaMalloc(&l->workspace, WORKSPACE));
    REQUIRE(l, cublasSetWorkspace(l->blas, l->workspace, WORKSPACE));
    REQUIRE(l, cublasSetPointerMode(l->blas, CUBLAS_POINTER_MODE_DEVICE));
    REQUIRE(l, cudaMalloc(&l->a, MOST * sizeof *l->a));
    REQUIRE(l, cudaMalloc(&l->b, MOST * sizeof *l->b));
    REQUIRE(l, cudaMalloc(&l->c, (size_t)1536 * 1536 * sizeof *l->c));
    REQUIRE(l, cudaMalloc(&l->places, PLACES * sizeof *l->places));
    REQUIRE(l, cudaMalloc(&l->scalars, sizeof ones));
    REQUIRE(l, cudaMemcpy(l->scalars, ones, sizeof ones, cudaMemcpyHostToDevice));
    REQUIRE(l, cudaMemset(l->places, 0, PLACES * sizeof *l->places));
    REQUIRE(l, cudaFuncSetAttribute(pass_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    128 * 1024));
    fill_kernel<<<1024, THREADS, 0, l->stream>>>(l->a, MOST, 1);
    fill_kernel<<<1024, THREADS, 0, l->stream>>>(l->b, MOST, 77);
}

/* c += op(a) op(b), and what runs between products. */
static void multiply(loop *l, const shape &s) {
    const bool ta = l->form[0] == 't', tb = l->form[1] == 't';
    const size_t bytes = (size_t)s.depth * (size_t)s.rows * 2;
    void *piece = nullptr;
    if (l->has_memory) {
        REQUIRE(l, cudaMallocAsync(&piece, bytes, l->stream));
        REQUIRE(l, cudaMemsetAsync(piece, 1, bytes, l->stream));
    }
    REQUIRE(l, cublasGemmEx_64(l->blas, ta ? CUBLAS_OP_T : CUBLAS_OP_N,
                               tb ? CUBLAS_OP_T : CUBLAS_OP_N, s.rows, s.columns, s.depth,
                               l->scalars, l->a, CUDA_R_16F, ta ? s.depth : s.rows, l->b,
                               CUDA_R_16F, tb ? s.columns : s.depth, l->scalars + 1, l->c,
                               CUDA_R_32F, s.rows, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    l->products++;
    if (l->has_memory) {
        REQUIRE(l, cudaFreeAsync(piece, l->stream));
    }
    if (l->has_kernels) {
        const size_t shared = l->products % 2 ? 120 * 1024 : 4096;
        pass_kernel<<<528, THREADS, shared, l->stream>>>(l->places, PLACES);
        pass_kernel<<<1056, THREADS, 1024, l->stream>>>(l->places, PLACES / 4);
    }
}

/* Returns how many results differed from the first. */
static unsigned run(loop *l, double seconds) {
    static const int sides[4][2] = {{576, 576}, {576, 192}, {576, 1536}, {1536, 576}};
    static const int depths[4] = {2048, 4096, 8192, 16384};
    std::vector<float> first[16], got;
    const double start = seconds_now();
    unsigned differing = 0;
    for (unsigned round = 0; seconds_now() - start < seconds; round++) {
        for (unsigned k = 0; k < 16; k++) {
            const shape s = {sides[k / 4][0], sides[k / 4][1], depths[k % 4]};
            const size_t count = (size_t)s.rows * (size_t)s.columns;
            const bool is_judged = round % 8 == 0;
            REQUIRE(l, cudaMemsetAsync(l->c, 0, count * sizeof *l->c, l->stream));
            for (unsigned i = 0; i < (is_judged ? 1u : 8u); i++) {
                multiply(l, s);
            }
            if (is_judged) {
                std::vector<float> &to = round == 0 ? first[k] : got;
                to.resize(count);
                REQUIRE(l, cudaMemcpyAsync(to.data(), l->c, count * sizeof *l->c,
                                           cudaMemcpyDeviceToHost, l->stream));
                REQUIRE(l, cudaStreamSynchronize(l->stream));
                differing += memcmp(first[k].data(), to.data(), count * sizeof *l->c) != 0;
            }
        }
    }
    REQUIRE(l, cudaStreamSynchronize(l->stream));
    return differing;
}

int main(int argc, char **argv) {
    if (argc < 4 || strlen(argv[1]) != 2) {
        (void)fprintf(stderr, "usage: share_card nt|tt|tn|nn PROCESSES SECONDS [k|m|km]\n");
        return 2;
    }
    const int processes = atoi(argv[2]);
    const char *left_out = argc > 4 ? argv[4] : "";
    for (int i = 0; i < processes; i++) {
        if (fork() == 0) { /* before CUDA is touched */
            loop l = {};
            l.form = argv[1];
            l.has_kernels = strchr(left_out, 'k') == nullptr;
            l.has_memory = strchr(left_out, 'm') == nullptr;
            begin(&l);
            const unsigned differing = run(&l, atof(argv[3]));
            printf("%s: %lu products, %u results differ\n", l.form, l.products, differing);
            (void)fflush(stdout);
            _exit(differing != 0);
        }
    }
    int failed = 0, status;
    while (wait(&status) > 0) {
        failed += status != 0;
    }
    printf("%s: %d of %d processes failed\n", argv[1], failed, processes);
    return failed != 0;
}
