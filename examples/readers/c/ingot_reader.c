/* A full verifier of Ingot containers in one file, for libc and libxxhash on little-endian 64-bit
 * machines, from spec/container.md and spec/quantization.md alone.  It does not decode zstd: such
 * chunks are E_UNSUPPORTED after all else has passed.  Not a library: one file at a time is in the
 * variables below; the first rule of container.md, section 12, that is broken ends the program. */
#define _XOPEN_SOURCE 700
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

typedef struct { /* section 3 */
    char magic[8];
    uint16_t major, minor;
    u32 super_size;
    u64 file_size, incompat, ro_compat, compat, table_at;
    u32 sections, profile, shard, shards;
    XXH128_hash_t set, root;
    u64 reserved[2], digest;
} Superblock;

typedef struct { /* section 4; type: four characters, from step 11 on one of the enum below */
    u32 type, flags;
    u64 at, size, aux;
    XXH128_hash_t digest;
} Section;

typedef struct { /* section 5; extra: number of outliers, or the target of an alias */
    u32 name_at;
    uint16_t name_size;
    u8 kind, rank;
    u64 dim[4];
    u8 dtype, bits, scale_dtype, zero_mode;
    u32 group;
    u64 extra, first_chunk, part[4][2];  /* offset, size */
    u64 rows, columns, groups, row_size; /* zero in the file; row_size: of part 0, in bytes */
} Tensor;

typedef struct { /* section 10 */
    u64 at;
    u32 size, codec;
    u64 digest;
} Stored;

enum { TIDX, TSRT, NAME, CHNK, LEDG, META, FILES, SHRD, ZMAP, DATA, UNKNOWN };
enum { DENSE, GROUPED, ALIAS, AUXILIARY };
static const char TYPES[] = "TIDXTSRTNAMECHNKLEDGMETAFILESHRDZMAPDATA";
static const char *const KINDS[] = {"dense", "grouped", "alias", "auxiliary"};
static const char *const DTYPES[] = {"F32", "F16", "BF16", "I32", "U8"};
static const u64 ELEMENT[] = {4, 2, 2, 4, 1}, CHUNK = 1 << 20;
static const char *path;
static Superblock super;
static Section section[64], *of[UNKNOWN + 1]; /* of: the last one of a type */
static void *bytes[UNKNOWN + 1];              /* of that section; not of DATA */
static Tensor *tensor;                        /* bytes[TIDX] */
static char *names;                           /* of tensors and files, each ended by a zero */
static u64 tensors, chunks, image_end;        /* image_end: of the part that was read last */
static u8 buffer[1 << 20], *part[4];          /* the chunk and the parts that were read last */

/* A broken rule ends the program; so does a failure of the system, whose text is no code. */
static void need(const char *code, bool ok) {
    if (!ok) {
        printf("%s %s\n", code, path);
        exit(*code == 'E' ? 1 : 2);
    }
}

static void *memory(u64 size) { /* zeroed, and some more than asked for */
    void *block = calloc(size + 8, 1);
    need("no memory for", block);
    return block;
}

static void *read_at(u64 at, void *to, u64 size) {
    FILE *f = fopen(path, "rb");
    need("cannot read", f && !fseeko(f, (off_t)at, SEEK_SET) && fread(to, 1, size, f) == size);
    fclose(f);
    return to;
}

static bool zero(const void *p, u64 size) {
    return size == 0 || (*(const u8 *)p == 0 && !memcmp(p, (const u8 *)p + 1, size - 1));
}

static u64 align(u64 x, u64 a) {
    return (x + a - 1) / a * a;
}

static const char *name_of(const Tensor *t) {
    return names + t->name_at + (t - tensor);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int by_offset(const void *a, const void *b) {
    return *(const u64 *)a < *(const u64 *)b ? -1 : *(const u64 *)a > *(const u64 *)b;
}

static void check_layout(const char *missing) { /* steps 1 to 15 */
    struct stat info = {0};
    need(missing, stat(path, &info) == 0 || errno != ENOENT);
    need("cannot read", S_ISREG(info.st_mode));
    u64 size = (u64)info.st_size;
    need("E_TOO_SHORT", size >= 160);
    read_at(0, &super, 128);
    need("E_MAGIC", !memcmp(super.magic, "\x89IGT\r\n\x1a\n", 8));
    need("E_SUPERBLOCK_DIGEST", XXH3_64bits(&super, 120) == super.digest);
    need("E_VERSION", super.major == 1);
    need("E_INCOMPAT", super.incompat <= 1);
    need("E_SUPERBLOCK", super.super_size == 128 && super.table_at == 128 && super.sections <= 64);
    need("E_SUPERBLOCK", super.profile <= 2 && super.shard < super.shards && super.shards <= 9999);
    need("E_SUPERBLOCK", super.file_size <= 1ull << 48 && zero(super.reserved, 16));
    need("E_FILE_SIZE", super.file_size == size);
    const u8 *trailer = read_at(size - 32, buffer, 32);
    need("E_TRAILER", !memcmp(trailer, &super.root, 16) && !memcmp(trailer + 16, &size, 8));
    need("E_TRAILER", !memcmp(trailer + 24, "IGTEND\r\n", 8));
    need("E_TABLE", 128 + 48 * super.sections + 32 <= size);
    read_at(128, section, 48 * super.sections);
    need("E_ROOT", XXH128_isEqual(super.root, XXH3_128bits(section, 48 * super.sections)));
    bool first = super.shard == 0, sharded = super.shards > 1, z = super.incompat;
    bool allowed[] = {1, 1, 1, 1, 1, 1, first, first && sharded, z, 1};
    Section *p = section, *stop_at = p + super.sections;
    u64 start = 128 + 48 * (u64)super.sections, end = start, limit = super.file_size - 32;
    memset(of, 0, sizeof of);
    for (u32 t, next = 0; p < stop_at; of[t] = p++) {
        for (t = 0; t < UNKNOWN && memcmp(&p->type, TYPES + 4 * t, 4);)
            t++;
        need("E_CRITICAL_SECTION", t < UNKNOWN || !(p->flags & 1));
        need("E_SECTION_ORDER", t == UNKNOWN || (p->flags == 1 && t >= next));
        next = t == UNKNOWN ? next : t + (t != FILES);
        p->type = t;
    }
    for (int t = 0; t < UNKNOWN; t++)
        need("E_SECTION_ORDER", allowed[t] ? of[t] || t == FILES : !of[t]);
    need("E_SECTION_ORDER", of[DATA] == stop_at - 1);
    for (p = section; p < stop_at; end = p->at + p->size, p++) {
        need("E_SECTION_BOUNDS", p->at == align(end, p->type == DATA ? 4096 : 8));
        need("E_SECTION_BOUNDS", p->at <= limit && p->size <= limit - p->at);
    }
    need("E_SECTION_BOUNDS", align(end, 8) == limit);
    u64 T = tensors = of[TIDX]->size / 160, C = chunks = of[CHNK]->size / 8;
    u64 R = 16 * (super.shards - 1), image = of[DATA]->aux, M = 256 * CHUNK;
    u64 least[] = {160 * T, 4 * T, 0, 8 * C, 128 * T, 0, 0, R, 24 * C, z ? 0 : image, 0};
    u64 most[] = {160 * T, 4 * T, M, 8 * C, 128 * T, M / 16, M, R, 24 * C, z ? limit : image, M};
    u64 aux[] = {0, 0, 0, 0, 0, 0, ~0ull, 0, 0, 1ull << 48, ~0ull};
    for (p = section; p < stop_at; p++) {
        need("E_SECTION_SIZE", p->size >= least[p->type] && p->size <= most[p->type]);
        need("E_SECTION_SIZE", p->aux <= aux[p->type] && T <= 1 << 20);
    }
    for (p = section; p < of[DATA]; p++) {
        free(p->type == SHRD ? NULL : bytes[p->type]); /* check_set still needs the roots */
        bytes[p->type] = read_at(p->at, memory(p->size), p->size);
        need("E_SECTION_DIGEST", XXH128_isEqual(p->digest, XXH3_128bits(bytes[p->type], p->size)));
    }
    need("E_SECTION_DIGEST", zero(&of[DATA]->digest, 16));
    for (p = section, end = start; p < stop_at; end = p->at + p->size, p++)
        need("E_GAP", zero(read_at(end, buffer, p->at - end), p->at - end));
    need("E_GAP", zero(read_at(end, buffer, limit - end), limit - end));
}

static void check_records(void) { /* steps 16 to 18 */
    u64 used = 0, end = 0, chunk = 0, image = of[DATA]->aux, all = of[NAME]->size;
    const char *before = "";
    names = memory(all + tensors + super.sections);
    tensor = bytes[TIDX];
    for (u64 i = 0; i < tensors + super.sections; i++) {
        const Section *file = i < tensors ? NULL : section + (i - tensors);
        if (file && file->type != FILES)
            continue;
        char *name = names + used + i;
        u64 at = file ? file->aux & UINT32_MAX : tensor[i].name_at;
        u64 size = file ? file->aux >> 32 : tensor[i].name_size;
        need("E_NAME", at == used && size >= 1 && size <= 255 && size <= all - used);
        memcpy(name, (u8 *)bytes[NAME] + used, size);
        for (const u8 *c = (u8 *)name; c < (u8 *)name + size; c++)
            need("E_NAME", isgraph(*c) && (!file || isalnum(*c) || strchr("._-", *c)));
        need("E_NAME", !file || (*name != '.' && strcmp(before, name) < 0));
        before = file ? name : "";
        used += size;
    }
    need("E_NAME", used == all);
    for (Tensor *t = tensor; t < tensor + tensors; t++) {
        need("E_RECORD", t->kind <= AUXILIARY && t->rank >= 1 && t->rank <= 4);
        need("E_RECORD", zero(&t->rows, 32) && zero(t->dim + t->rank, 32 - 8 * t->rank));
        for (u64 k = 0, product = 1; k < t->rank; k++) {
            t->rows = k ? t->rows * t->columns : 1;
            t->columns = t->dim[k];
            need("E_RECORD", t->columns <= (1ull << 48) / product);
            product *= t->columns ? t->columns : 1;
        }
        if (t->kind == DENSE || t->kind == AUXILIARY) {
            need("E_RECORD", t->dtype <= (t->kind == DENSE ? 4 : 0) && zero(&t->bits, 15));
            t->row_size = t->columns * ELEMENT[t->dtype];
        }
        if (t->kind != GROUPED)
            continue;
        need("E_RECORD", t->rows && t->group && t->columns <= UINT32_MAX && t->dtype <= 1);
        need("E_RECORD", t->bits >= 2 && t->bits <= 8 && t->scale_dtype <= 2 && t->zero_mode <= 1);
        need("E_RECORD", t->group <= t->columns && (t->group % 8 == 0 || t->group == t->columns));
        need("E_RECORD", t->extra <= t->rows * t->columns && (t->dtype == 1 || t->extra));
        t->groups = align(t->columns, t->group) / t->group;
        t->row_size = align((t->columns * t->bits + 7) / 8, 16);
    }
    for (Tensor *t = tensor; t < tensor + tensors; t++) {
        u64 n = t->rows, J = n * t->groups, nnz = t->kind == GROUPED ? t->extra : 0;
        u64 size[4] = {n * t->row_size, J ? J * ELEMENT[t->scale_dtype] : 0, t->zero_mode ? J : 0};
        size[3] = nnz ? 8 * (n + 1) + align(4 * nnz, 8) + nnz * ELEMENT[t->dtype] : 0;
        need("E_GEOMETRY", t->first_chunk == chunk);
        for (u64 *s = size, *p = t->part[0]; s < size + 4; s++, p += 2) {
            u64 at = *s ? align(end, *s >= 65536 ? 4096 : 256) : 0;
            need("E_GEOMETRY", p[0] == at && p[1] == *s && at + *s <= image);
            end = *s ? at + *s : end;
            chunk += align(*s, CHUNK) / CHUNK;
        }
    }
    need("E_GEOMETRY", end == image && chunk == chunks);
}

static void check_file(const char *missing) { /* steps 1 to 22 */
    check_layout(missing);
    check_records();
    for (const Tensor *t = tensor; t < tensor + tensors; t++) {
        need("E_ALIAS", t->kind != ALIAS || (t->extra < tensors && tensor[t->extra].kind != ALIAS));
        need("E_ALIAS", t->kind != ALIAS || !memcmp(&t->rank, &tensor[t->extra].rank, 41));
    }
    for (const u32 *p = bytes[TSRT], *first = p; p < first + tensors; p++) {
        need("E_SORT", *p < tensors);
        need("E_SORT", p == first || strcmp(name_of(tensor + p[-1]), name_of(tensor + *p)) < 0);
    }
    for (const u8 *p = bytes[LEDG], *first = p; p < first + 128 * tensors; p += 128) {
        need("E_LEDGER", p[0] <= 5 && p[1] <= 3 && p[3] <= 1 && zero(p + 12, 4));
        need("E_LEDGER", zero(p + 88, 40)); /* numbers: finite and not negative, or the one NaN */
        for (const u64 *v = (const void *)(p + 32), *stop_at = v + 5; v < stop_at; v++)
            need("E_LEDGER", *v < 0x7ffull << 52 || *v == 0x7ff8ull << 48);
    }
    image_end = 0;
    if (!super.incompat)
        return;
    u64 end = 0;
    Stored *sorted = memcpy(memory(24 * chunks), bytes[ZMAP], 24 * chunks);
    qsort(sorted, chunks, 24, by_offset);
    for (const Stored *p = sorted; p < sorted + chunks; end += p++->size)
        need("E_ZMAP", p->size - 1 < CHUNK && p->codec <= 1 && p->at == end);
    need("E_ZMAP", end == of[DATA]->size);
    free(sorted);
}

/* Step 23; the paths of all shards, of which the file at hand is one. */
static char **check_set(void) {
    u64 n = super.shards, found = 0, total = 0, size = 0;
    char **shard = memory(n * sizeof *shard);
    const char *dot = strrchr(path, '.');
    const char *end = dot && !strchr(dot, '/') ? dot : path + strlen(path);
    need("E_SHARD_MISSING", end - path >= 15);
    for (u32 i = 0; i < n; i++) {
        shard[i] = memory(strlen(path));
        sprintf(shard[i], "%.*s-%05u-of-%05u%s", (int)(end - path) - 15, path, i + 1, (u32)n, end);
        found += !strcmp(shard[i], path);
    }
    need("E_SHARD_MISSING", found);
    Superblock old = super;
    u8 *meta = NULL; /* of the first shard */
    const char **name = memory(sizeof *name << 20);
    for (u32 i = 0; i < n; i++) {
        path = shard[i];
        check_file("E_SHARD_MISSING");
        need("E_SHARD", super.shard == i && super.shards == n);
        need("E_SHARD", !i || (super.profile == old.profile && XXH128_isEqual(super.set, old.set)));
        need("E_SHARD", !i || (of[META]->size == size && !memcmp(bytes[META], meta, size)));
        need("E_SHARD", !i || !memcmp((u8 *)bytes[SHRD] + 16 * (i - 1), &super.root, 16));
        old = super;
        size = of[META]->size;
        meta = i ? meta : memcpy(memory(size), bytes[META], size);
        for (const Tensor *t = tensor; t < tensor + tensors; t++, total++)
            name[total % (1 << 20)] = name_of(t);
    }
    need("E_SHARD", total <= 1 << 20);
    qsort(name, total, sizeof *name, by_name);
    for (u64 i = 1; i < total; i++)
        need("E_SHARD", strcmp(name[i - 1], name[i]) != 0);
    return shard;
}

/* Element i of an array of F32, F16 or BF16; of F16, 65536 and more is not finite. */
static float number(const u8 *p, u64 i, int dtype) {
    u32 v = 0;
    float x;
    memcpy(&v, p + i * ELEMENT[dtype], ELEMENT[dtype]);
    v = dtype == 1 ? (v & 0x8000) << 16 | (v & 0x7fff) << 13 : dtype == 2 ? v << 16 : v;
    memcpy(&x, &v, 4);
    return dtype == 1 ? x * 0x1p112f : x;
}

/* Step 26 for the chunk in the buffer: n bytes from byte `at` of part k. */
static void check_values(const Tensor *t, int k, u64 at, u64 n) {
    u64 bits = t->columns * t->bits, width = k == 1 ? ELEMENT[t->scale_dtype] : 1;
    float least = t->scale_dtype == 1 ? 0x1p-24f : 0x1p-100f;
    float most = t->scale_dtype == 1 ? 0x1p15f : 0x1p100f;
    for (u64 i = 0; t->kind == GROUPED && k < 3 && i < n / width; i++) {
        u64 bit = (at + i) % t->row_size * 8, used = bit < bits ? bits - bit : 0; /* of a row */
        float s = k == 1 ? number(buffer, i, t->scale_dtype) : 0;
        need("E_CODE_PADDING", k != 0 || used >= 8 || buffer[i] >> used == 0);
        need("E_SCALE", s == 0 || (s >= least && s <= most) || (s <= -least && s >= -most));
        need("E_ZERO_POINT", k != 2 || buffer[i] >> t->bits == 0);
    }
}

/* Steps 24 to 26 for all parts, with the gaps before them.  False: some chunk is compressed. */
static bool load_tensor(const Tensor *t) {
    const u64 *digest = (u64 *)bytes[CHNK] + t->first_chunk, data = of[DATA]->at;
    const Stored *map = super.incompat ? (Stored *)bytes[ZMAP] + t->first_chunk : NULL;
    bool decoded = true;
    for (int k = 0; k < 4; k++) {
        u64 size = t->part[k][1], start = size ? t->part[k][0] : image_end, gap = start - image_end;
        need("E_DATA_GAP", map || zero(read_at(data + image_end, buffer, gap), gap));
        image_end = start + size;
        free(part[k]);
        part[k] = memory(size);
        for (u64 at = 0, n; at < size; at += n, digest++) {
            n = size - at < CHUNK ? size - at : CHUNK;
            Stored s = map ? *map++ : (Stored){start + at, (u32)n, 0, 0};
            read_at(data + s.at, buffer, s.size);
            need("E_STORED_DIGEST", !map || XXH3_64bits(buffer, s.size) == s.digest);
            decoded = decoded && s.codec == 0;
            if (s.codec)
                continue;
            need("E_COMPRESSION", s.size == n);
            need("E_CHUNK_DIGEST", XXH3_64bits(buffer, n) == *digest);
            memcpy(part[k] + at, buffer, n);
            check_values(t, k, at, n);
        }
    }
    return decoded;
}

/* Step 27, or with `print` the values.  Legal outliers are all met on a walk along the columns. */
static void walk_tensor(const Tensor *t, bool print) {
    u64 nnz = t->kind == GROUPED ? t->extra : 0, met = 0;
    const u64 *row = (const void *)part[3];
    const u32 *column = (const void *)(part[3] + (nnz ? 8 * (t->rows + 1) : 0));
    const u8 *value = (const u8 *)(column + align(nnz, 2));
    float most = t->dtype == 1 ? 65504 : 0x1.fffffep127f;
    need("E_OUTLIER", !nnz || (row[0] == 0 && zero(column + nnz, nnz % 2 * 4)));
    if (print)
        printf("tensor %s %s %s ", name_of(t), KINDS[t->kind], DTYPES[t->dtype]);
    for (int k = 0; print && k < t->rank; k++)
        printf("%llu%s", (unsigned long long)t->dim[k], k + 1 < t->rank ? "x" : " ");
    if (print && t->kind == ALIAS)
        printf("of=%s", name_of(tensor + t->extra));
    for (u64 i = 0; t->kind != GROUPED && print && i < t->part[0][1]; i++)
        printf("%02x", part[0][i]);
    for (u64 r = 0; t->kind == GROUPED && r < t->rows; r++) {
        for (u64 c = 0; c < t->columns; c++) {
            const u8 *p = part[0] + r * t->row_size + c * t->bits / 8;
            u64 group = r * t->groups + c / t->group;
            int q = ((p[0] | p[1] << 8) >> c * t->bits % 8) & ((1 << t->bits) - 1);
            int z = t->zero_mode ? part[2][group] : 1 << (t->bits - 1);
            float w = number(part[1], group, t->scale_dtype) * (float)(q - z);
            if (met < nnz && met < row[r + 1] && column[met] == c) {
                w = number(value, met++, t->dtype);
                need("E_OUTLIER", q == z && w >= -most && w <= most);
            }
            for (u64 i = 0; print && i < sizeof w; i++)
                printf("%02x", ((const u8 *)&w)[i]);
        }
        need("E_OUTLIER", !nnz || met == row[r + 1]);
    }
    need("E_OUTLIER", met == nnz);
    printf(print ? "\n" : "");
}

int main(int argc, char **argv) {
    bool values = argc == 3 && !strcmp(argv[1], "--values"), decoded = true;
    path = argv[argc - 1];
    need("usage: ingot_reader [--values] FILE, not", argc == 2 || values);
    check_file("cannot read");
    char **shard = super.shards > 1 ? check_set() : argv + argc - 1;
    for (u32 i = 0, n = super.shards; i < (values ? 3 : 2) * n; i++) { /* rounds through the set */
        path = shard[i % n];
        check_file("cannot read");
        for (const Tensor *t = tensor; t < tensor + tensors; t++) {
            bool loaded = load_tensor(t);
            if (loaded && i >= n)
                walk_tensor(t, i >= 2 * n);
            decoded = decoded && loaded;
        }
    }
    need("E_UNSUPPORTED", decoded);
    return puts("OK") < 0 || fflush(stdout) ? 2 : 0;
}
