/* A full verifier of Ingot containers in one file, for libc and libxxhash on little-endian
 * machines.
 *
 * Written from spec/container.md and spec/quantization.md alone.  Opens a file, or the set that a
 * shard names, performs the steps of section 12 in their order and prints the first error code, or
 * the tensors and their values (README.md).  It does not decode zstd: such chunks are E_UNSUPPORTED
 * after all else has passed.  Not a library: the first error ends it.
 */
#define _XOPEN_SOURCE     700
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

typedef struct { /* section 3 */
    char magic[8];
    u16 major, minor;
    u32 super_size;
    u64 file_size, incompat, ro_compat, compat, table_at;
    u32 sections, profile, shard, shards;
    XXH128_hash_t set, root;
    u64 reserved[2], digest;
} Superblock;

typedef struct { /* section 4 */
    char type[4];
    u32 flags;
    u64 at, size, aux;
    XXH128_hash_t digest;
} Section;

typedef struct { /* section 5; extra: number of outliers, or the target of an alias */
    u32 name_at;
    u16 name_size;
    u8 kind, rank;
    u64 dim[4];
    u8 dtype, bits, scale_dtype, zero_mode;
    u32 group;
    u64 extra, first_chunk;
    struct {
        u64 at, size;
    } part[4];
    u64 reserved[4];
} Tensor;

typedef struct { /* section 8 */
    u8 method, fallback, damping_step, folded;
    u32 dead, small, reserved;
    u64 tokens, outliers, numbers[5], source[2], reserved_too[5];
} Ledger;

typedef struct { /* section 10 */
    u64 at;
    u32 size, codec;
    u64 digest;
} Stored;

enum { TIDX, TSRT, NAME, CHNK, LEDG, META, FILES, SHRD, ZMAP, DATA, UNKNOWN };
enum { DENSE, GROUPED, ALIAS, AUXILIARY };
static const char TYPES[] = "TIDXTSRTNAMECHNKLEDGMETAFILESHRDZMAPDATA";
static const char *const DTYPES[] = {"F32", "F16", "BF16", "I32", "U8"};
static const u64 ELEMENT[] = {4, 2, 2, 4, 1}, CHUNK = 1 << 20, MAX_TENSORS = 1 << 20;

typedef struct {
    const char *path;
    u64 size, tensors, chunks;
    Superblock s;
    Section section[64];
    int type[64], of[UNKNOWN]; /* of: the last section of a type, or -1 */
    Tensor *tensor;
    u8 *names;
} File;

static u8 buffer[1 << 20];
static bool undecoded; /* some chunk was not decoded */

static void need(const File *f, const char *code, bool ok) {
    if (!ok) {
        printf("%s %s\n", code, f->path);
        exit(fflush(stdout) ? 2 : 1);
    }
}

static void stop(const char *what) { /* the system refuses */
    fprintf(stderr, "ingot_reader: %s: %s\n", what, errno ? strerror(errno) : "became shorter");
    exit(2);
}

/* Opens for each read: a set may have more files than a process may have open. */
static void read_at(const File *f, u64 at, void *to, u64 size) {
    int fd = open(f->path, O_RDONLY);
    for (u64 done = 0; done < size;) {
        errno = 0;
        ssize_t n = pread(fd, (u8 *)to + done, size - done, (off_t)(at + done));
        if (n <= 0)
            stop(f->path);
        done += (u64)n;
    }
    close(fd);
}

static void *load(const File *f, u64 at, u64 size) {
    void *bytes = size < PTRDIFF_MAX ? malloc(size + 1) : NULL;
    if (!bytes)
        stop("memory");
    read_at(f, at, bytes, size);
    return bytes;
}

static void *load_section(const File *f, int type) {
    return load(f, f->section[f->of[type]].at, f->section[f->of[type]].size);
}

static u64 align(u64 x, u64 a) {
    return (x + a - 1) / a * a;
}

static bool zero(const void *bytes, u64 size) {
    const u8 *p = bytes;
    while (size && *p == 0)
        p++, size--;
    return size == 0;
}

static bool zero_in_file(const File *f, u64 from, u64 to) { /* less than a page */
    read_at(f, from, buffer, to - from);
    return zero(buffer, to - from);
}

static int compare(const void *a, u64 a_size, const void *b, u64 b_size) {
    int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

static u64 columns(const Tensor *t) {
    return t->dim[t->rank - 1];
}

static u64 rows(const Tensor *t) {
    u64 n = 1;
    for (int i = 0; i + 1 < t->rank; i++)
        n *= t->dim[i];
    return n;
}

static u64 stride(const Tensor *t) {
    return align((columns(t) * t->bits + 7) / 8, 16);
}

static u64 groups(const Tensor *t) {
    return align(columns(t), t->group) / t->group;
}

static void check_superblock(File *f) { /* steps 1 to 10 */
    Superblock *s = &f->s;
    u8 trailer[32];
    need(f, "E_TOO_SHORT", f->size >= 160);
    read_at(f, 0, s, 128);
    need(f, "E_MAGIC", !memcmp(s->magic, "\x89IGT\r\n\x1a\n", 8));
    need(f, "E_SUPERBLOCK_DIGEST", XXH3_64bits(s, 120) == s->digest);
    need(f, "E_VERSION", s->major == 1);
    need(f, "E_INCOMPAT", s->incompat <= 1);
    need(f, "E_SUPERBLOCK",
         s->super_size == 128 && s->table_at == 128 && s->sections <= 64 && s->profile <= 2 &&
             s->shard < s->shards && s->shards <= 9999 && s->file_size <= 1ull << 48 &&
             zero(s->reserved, 16));
    need(f, "E_FILE_SIZE", s->file_size == f->size);
    read_at(f, f->size - 32, trailer, 32);
    need(f, "E_TRAILER",
         !memcmp(trailer, &s->root, 16) && !memcmp(trailer + 16, &f->size, 8) &&
             !memcmp(trailer + 24, "IGTEND\r\n", 8));
    need(f, "E_TABLE", 128 + 48 * s->sections + 32 <= f->size);
    read_at(f, 128, f->section, 48 * s->sections);
    need(f, "E_ROOT", XXH128_isEqual(s->root, XXH3_128bits(f->section, 48 * s->sections)));
}

static void check_sections(File *f) { /* steps 11 to 13 */
    bool first = f->s.shard == 0,
         allowed[UNKNOWN] = {1, 1, 1, 1, 1, 1, first, first && f->s.shards > 1, f->s.incompat, 1};
    int n = (int)f->s.sections, last = -1;
    u64 end = 128 + 48 * (u64)n, limit = f->size - 32;
    memset(f->of, -1, sizeof f->of);
    for (int i = 0, t = 0; i < n; i++, t = 0) {
        while (t < UNKNOWN && memcmp(f->section[i].type, TYPES + 4 * t, 4))
            t++;
        f->type[i] = t;
        need(f, "E_CRITICAL_SECTION", t < UNKNOWN || !(f->section[i].flags & 1));
        if (t == UNKNOWN)
            continue;
        need(f, "E_SECTION_ORDER",
             f->section[i].flags == 1 && (t > last || (t == last && t == FILES)));
        f->of[last = t] = i;
    }
    for (int t = 0; t < UNKNOWN; t++)
        need(f, "E_SECTION_ORDER", allowed[t] ? f->of[t] >= 0 || t == FILES : f->of[t] < 0);
    need(f, "E_SECTION_ORDER", f->of[DATA] == n - 1);
    for (const Section *p = f->section; p < f->section + n; p++) {
        need(f, "E_SECTION_BOUNDS",
             p->at == align(end, p == f->section + n - 1 ? 4096 : 8) && p->at <= limit &&
                 p->size <= limit - p->at);
        end = p->at + p->size;
    }
    need(f, "E_SECTION_BOUNDS", align(end, 8) == limit);
    u64 T = f->tensors = f->section[f->of[TIDX]].size / 160;
    u64 C = f->chunks = f->section[f->of[CHNK]].size / 8;
    for (int i = 0; i < n; i++) {
        u64 size = f->section[i].size, aux = f->section[i].aux, t = (u64)f->type[i];
        u64 exact[] = {160 * T, 4 * T,
                       size,    8 * C,
                       128 * T, size,
                       size,    16 * (f->s.shards - 1),
                       24 * C,  f->s.incompat ? size : aux,
                       size};
        bool large = t == CHNK || t == ZMAP || t == DATA;
        need(f, "E_SECTION_SIZE",
             size == exact[t] && (large || size <= (t == META ? 16 : 256) * CHUNK) &&
                 (t == FILES || t == UNKNOWN || aux <= (t == DATA ? 1ull << 48 : 0)));
    }
    need(f, "E_SECTION_SIZE", T <= MAX_TENSORS);
}

static void check_digests(const File *f) { /* steps 14, 15 */
    const Section *stop_at = f->section + f->s.sections;
    u64 end = 128 + 48 * (u64)f->s.sections, n;
    XXH3_state_t *state = XXH3_createState();
    if (!state)
        stop("memory");
    for (const Section *p = f->section; p < stop_at; p++) {
        XXH3_128bits_reset(state);
        for (u64 at = 0; p + 1 < stop_at && at < p->size; at += n) {
            n = p->size - at < CHUNK ? p->size - at : CHUNK;
            read_at(f, p->at + at, buffer, n);
            XXH3_128bits_update(state, buffer, n);
        }
        need(f, "E_SECTION_DIGEST",
             p + 1 < stop_at ? XXH128_isEqual(p->digest, XXH3_128bits_digest(state))
                             : zero(&p->digest, 16));
    }
    XXH3_freeState(state);
    for (const Section *p = f->section; p < stop_at; end = p->at + p->size, p++)
        need(f, "E_GAP", zero_in_file(f, end, p->at));
    need(f, "E_GAP", zero_in_file(f, end, f->size - 32));
}

static void check_names(const File *f) { /* step 16: of tensors, then of files */
    u64 end = 0, before = 0, T = f->tensors, all = f->section[f->of[NAME]].size;
    for (u64 i = 0; i < T + f->s.sections; i++) {
        bool file = i >= T;
        if (file && f->type[i - T] != FILES)
            continue;
        u64 at = file ? f->section[i - T].aux & UINT32_MAX : f->tensor[i].name_at;
        u64 size = file ? f->section[i - T].aux >> 32 : f->tensor[i].name_size;
        const u8 *c = f->names + end;
        need(f, "E_NAME", at == end && size >= 1 && size <= 255 && size <= all - end);
        for (u64 k = 0; k < size; k++) {
            bool letter = (c[k] | 32) >= 'a' && (c[k] | 32) <= 'z',
                 digit = c[k] >= '0' && c[k] <= '9';
            need(f, "E_NAME",
                 file ? letter || digit || c[k] == '_' || c[k] == '-' || (c[k] == '.' && k)
                      : c[k] >= 0x21 && c[k] <= 0x7e);
        }
        need(f, "E_NAME", !file || !before || compare(c - before, before, c, size) < 0);
        before = file ? size : 0;
        end += size;
    }
    need(f, "E_NAME", end == all);
}

static void check_record(const File *f, const Tensor *t) { /* step 17 */
    u64 product = 1;
    need(f, "E_RECORD",
         t->kind <= AUXILIARY && t->rank >= 1 && t->rank <= 4 && zero(t->reserved, 32));
    for (int k = 0; k < 4; k++) {
        u64 d = t->dim[k] ? t->dim[k] : 1;
        need(f, "E_RECORD", d <= (1ull << 48) / product && (k < t->rank || !t->dim[k]));
        product *= d;
    }
    if (t->kind == GROUPED)
        need(f, "E_RECORD",
             rows(t) && columns(t) && columns(t) <= UINT32_MAX && t->bits >= 2 && t->bits <= 8 &&
                 t->scale_dtype <= 2 && t->zero_mode <= 1 && t->group && t->group <= columns(t) &&
                 (t->group % 8 == 0 || t->group == columns(t)) && t->extra <= product &&
                 (t->dtype == 1 || (t->dtype == 0 && t->extra)));
    else if (t->kind != ALIAS)
        need(f, "E_RECORD", t->dtype <= (t->kind == DENSE ? 4 : 0) && zero(&t->bits, 15));
}

static void check_geometry(const File *f) { /* step 18 */
    u64 end = 0, chunks = 0, image = f->section[f->of[DATA]].aux;
    for (const Tensor *t = f->tensor; t < f->tensor + f->tensors; t++) {
        u64 size[4] = {0}, nnz = t->extra, n = rows(t);
        if (t->kind == GROUPED) {
            size[0] = n * stride(t);
            size[1] = n * groups(t) * ELEMENT[t->scale_dtype];
            size[2] = t->zero_mode ? n * groups(t) : 0;
            size[3] = nnz ? 8 * (n + 1) + align(4 * nnz, 8) + nnz * ELEMENT[t->dtype] : 0;
        } else if (t->kind != ALIAS)
            size[0] = n * columns(t) * ELEMENT[t->dtype];
        need(f, "E_GEOMETRY", t->first_chunk == chunks);
        for (int k = 0; k < 4; k++) {
            u64 at = size[k] ? align(end, size[k] >= 65536 ? 4096 : 256) : 0;
            need(f, "E_GEOMETRY",
                 t->part[k].at == at && t->part[k].size == size[k] && at <= image &&
                     size[k] <= image - at);
            end = size[k] ? at + size[k] : end;
            chunks += align(size[k], CHUNK) / CHUNK;
        }
    }
    need(f, "E_GEOMETRY", end == image && chunks == f->chunks);
}

static int by_offset(const void *a, const void *b) {
    u64 x = ((const Stored *)a)->at, y = ((const Stored *)b)->at;
    return (x > y) - (x < y);
}

static void check_tables(const File *f) { /* steps 19 to 22 */
    for (const Tensor *t = f->tensor; t < f->tensor + f->tensors; t++)
        if (t->kind == ALIAS)
            need(f, "E_ALIAS",
                 t->extra < f->tensors && f->tensor[t->extra].kind != ALIAS &&
                     !memcmp(&t->rank, &f->tensor[t->extra].rank, 41));
    u32 *sorted = load_section(f, TSRT);
    for (u64 i = 0; i < f->tensors; i++) {
        need(f, "E_SORT", sorted[i] < f->tensors);
        const Tensor *a = f->tensor + sorted[i ? i - 1 : 0], *b = f->tensor + sorted[i];
        need(f, "E_SORT",
             !i || compare(f->names + a->name_at, a->name_size, f->names + b->name_at,
                           b->name_size) < 0);
    }
    free(sorted);
    Ledger *ledger = load_section(f, LEDG);
    for (const Ledger *p = ledger; p < ledger + f->tensors; p++) {
        bool ok = p->method <= 5 && p->fallback <= 3 && p->folded <= 1 && !p->reserved &&
                  zero(p->reserved_too, 40);
        for (int k = 0; k < 5; k++) /* finite and not negative, or the one NaN */
            ok = ok && (p->numbers[k] < 0x7ffull << 52 || p->numbers[k] == 0x7ff8ull << 48);
        need(f, "E_LEDGER", ok);
    }
    free(ledger);
    if (!f->s.incompat)
        return;
    Stored *stored = load_section(f, ZMAP);
    u64 end = 0;
    for (u64 i = 0; i < f->chunks; i++)
        need(f, "E_ZMAP", stored[i].size >= 1 && stored[i].size <= CHUNK && stored[i].codec <= 1);
    qsort(stored, f->chunks, sizeof *stored, by_offset);
    for (u64 i = 0; i < f->chunks; end += stored[i++].size)
        need(f, "E_ZMAP", stored[i].at == end);
    need(f, "E_ZMAP", end == f->section[f->of[DATA]].size);
    free(stored);
}

static void check_file(File *f) { /* steps 1 to 22 */
    struct stat info;
    errno = EINVAL;
    if (stat(f->path, &info) || !S_ISREG(info.st_mode))
        stop(f->path);
    f->size = (u64)info.st_size;
    check_superblock(f);
    check_sections(f);
    check_digests(f);
    f->tensor = load_section(f, TIDX);
    f->names = load_section(f, NAME);
    check_names(f);
    for (u64 i = 0; i < f->tensors; i++)
        check_record(f, f->tensor + i);
    check_geometry(f);
    check_tables(f);
}

typedef struct {
    const u8 *text;
    u64 size;
} Name;

static int by_name(const void *a, const void *b) {
    const Name *x = a, *y = b;
    return compare(x->text, x->size, y->text, y->size);
}

static void check_unique(const File *f, u32 n, u64 total) { /* the end of step 23 */
    Name *names = malloc(sizeof *names * (total + 1)), *next = names;
    if (!names)
        stop("memory");
    for (u32 i = 0; i < n; i++)
        for (const Tensor *t = f[i].tensor; t < f[i].tensor + f[i].tensors; t++)
            *next++ = (Name){f[i].names + t->name_at, t->name_size};
    qsort(names, total, sizeof *names, by_name);
    for (u64 i = 1; i < total; i++)
        need(f, "E_SHARD", by_name(names + i - 1, names + i) < 0);
    free(names);
}

static File *open_set(const char *path, u32 *count) { /* step 23 */
    File named = {.path = path}, *set, *f;
    u64 total = 0;
    check_file(&named);
    u32 n = *count = named.s.shards;
    if (!(set = calloc(n, sizeof *set)))
        stop("memory");
    if (n == 1)
        return memcpy(set, &named, sizeof named);
    free(named.tensor);
    free(named.names);
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const char *dot = strrchr(base, '.'), *end = dot ? dot : base + strlen(base);
    unsigned long a = end - base >= 15 ? strtoul(end - 14, NULL, 10) : 0;
    char tail[32];
    snprintf(tail, sizeof tail, "-%05u-of-%05u", (u32)a, n);
    need(&named, "E_SHARD_MISSING", a >= 1 && a <= n && !memcmp(end - 15, tail, 15));
    for (f = set; f < set + n; f++) {
        char *sibling = strdup(path);
        struct stat info;
        if (!sibling)
            stop("memory");
        snprintf(tail, sizeof tail, "-%05u", (u32)(f - set) + 1);
        memcpy(sibling + (end - 15 - path), tail, 6);
        f->path = sibling;
        need(f, "E_SHARD_MISSING", stat(sibling, &info) == 0 || errno != ENOENT);
        check_file(f);
        need(f, "E_SHARD",
             f->s.shard == (u32)(f - set) && f->s.shards == n && f->s.profile == set->s.profile &&
                 XXH128_isEqual(f->s.set, set->s.set));
        u64 size = f->section[f->of[META]].size;
        void *ours = load_section(f, META), *first = load_section(set, META);
        need(f, "E_SHARD", size == set->section[set->of[META]].size && !memcmp(ours, first, size));
        free(ours);
        free(first);
        if (f > set) {
            read_at(set, set->section[set->of[SHRD]].at + 16 * (u64)(f - set - 1), buffer, 16);
            need(f, "E_SHARD", !memcmp(buffer, &f->s.root, 16));
        }
        if ((total += f->tensors) > MAX_TENSORS) { /* too many to keep, but the rest comes first */
            free(f->tensor);
            free(f->names);
            f->tensors = 0;
        }
    }
    need(set, "E_SHARD", total <= MAX_TENSORS);
    check_unique(set, n, total);
    return set;
}

/* Steps 24 and 25: a chunk of `size` bytes at `at` of the image, into `buffer`.  False: zstd. */
static bool read_chunk(const File *f, u64 number, u64 at, u64 size) {
    Stored s = {at, (u32)size, 0, 0};
    u64 digest;
    if (f->s.incompat) {
        read_at(f, f->section[f->of[ZMAP]].at + 24 * number, &s, 24);
        need(f, "E_ZMAP", s.size <= CHUNK);
    }
    read_at(f, f->section[f->of[DATA]].at + s.at, buffer, s.size);
    if (f->s.incompat)
        need(f, "E_STORED_DIGEST", XXH3_64bits(buffer, s.size) == s.digest);
    if (s.codec)
        return false;
    need(f, "E_COMPRESSION", s.size == size);
    read_at(f, f->section[f->of[CHNK]].at + 8 * number, &digest, 8);
    need(f, "E_CHUNK_DIGEST", XXH3_64bits(buffer, size) == digest);
    return true;
}

/* Step 26 for the chunk in `buffer`, from byte `at` of part k. */
static void check_values(const File *f, const Tensor *t, int k, u64 at, u64 n) {
    static const u32 least[] = {27u << 23, 1, 27u << 7}, most[] = {227u << 23, 0x7800, 227u << 7};
    u64 bits = columns(t) * t->bits, row = stride(t), width = ELEMENT[t->scale_dtype];
    for (u64 i = 0, bit = at % row * 8; k == 0 && i < n;
         i++, bit = bit + 8 == row * 8 ? 0 : bit + 8)
        need(f, "E_CODE_PADDING",
             bit + 8 <= bits || !(bit >= bits ? buffer[i] : buffer[i] >> (bits - bit)));
    for (u64 i = 0; k == 1 && i < n; i += width) {
        u32 v = 0;
        memcpy(&v, buffer + i, width);
        v &= width == 4 ? 0x7fffffff : 0x7fff;
        need(f, "E_SCALE", !v || (v >= least[t->scale_dtype] && v <= most[t->scale_dtype]));
    }
    for (u64 i = 0; k == 2 && i < n; i++)
        need(f, "E_ZERO_POINT", buffer[i] >> t->bits == 0);
}

/* The chunks of part k in turn: checked, or copied to `to`. */
static void walk_part(const File *f, Tensor *t, int k, u8 *to) {
    u64 number = t->first_chunk, size = t->part[k].size;
    for (int i = 0; i < k; i++)
        number += align(t->part[i].size, CHUNK) / CHUNK;
    for (u64 at = 0, n; at < size; at += n, number++) {
        n = size - at < CHUNK ? size - at : CHUNK;
        bool decoded = read_chunk(f, number, t->part[k].at + at, n);
        if (!decoded)
            t->reserved[0] = undecoded = true;
        else if (to)
            memcpy(to + at, buffer, n);
        else if (t->kind == GROUPED)
            check_values(f, t, k, at, n);
    }
}

static void load_parts(const File *f, Tensor *t, u8 *part[4]) {
    for (int k = 0; k < 4; k++) {
        if (!(part[k] = t->part[k].size < PTRDIFF_MAX ? calloc(t->part[k].size + 1, 1) : NULL))
            stop("memory");
        walk_part(f, t, k, part[k]);
    }
}

static void free_parts(u8 *part[4]) {
    for (int k = 0; k < 4; k++)
        free(part[k]);
}

/* q - z of an element of a grouped tensor. */
static int level(const Tensor *t, u8 *part[4], u64 row, u64 column) {
    const u8 *p = part[0] + row * stride(t) + column * t->bits / 8;
    int q = ((p[0] | p[1] << 8) >> column * t->bits % 8) & ((1 << t->bits) - 1);
    return q - (t->zero_mode ? part[2][row * groups(t) + column / t->group] : 1 << (t->bits - 1));
}

/* Element i of an array of F32, F16 or BF16. */
static float number(const u8 *p, u64 i, int dtype) {
    u32 v = 0;
    float x;
    memcpy(&v, p + i * ELEMENT[dtype], ELEMENT[dtype]);
    if (dtype == 1)
        v = (v & 0x8000) << 16 | (v & 0x7fff) << 13; /* 2^-112 of the value, if finite */
    if (dtype == 2)
        v <<= 16;
    memcpy(&x, &v, 4);
    return dtype == 1 ? x * 0x1p112f : x;
}

static void check_outliers(const File *f, const Tensor *t, u8 *part[4]) { /* step 27 */
    u64 n = rows(t), nnz = t->extra, top = t->dtype ? 0x7c00 : 0x7f800000;
    const u64 *row = (const void *)part[3];
    const u32 *column = (const void *)(row + n + 1);
    const u8 *value = (const u8 *)column + align(4 * nnz, 8);
    need(f, "E_OUTLIER", row[0] == 0 && zero(column + nnz, align(4 * nnz, 8) - 4 * nnz));
    for (u64 r = 0; r < n; r++) {
        need(f, "E_OUTLIER", row[r] <= row[r + 1] && row[r + 1] <= nnz);
        for (u64 i = row[r]; i < row[r + 1]; i++) {
            u32 v = 0;
            memcpy(&v, value + i * ELEMENT[t->dtype], ELEMENT[t->dtype]);
            need(f, "E_OUTLIER",
                 column[i] < columns(t) && (i == row[r] || column[i] > column[i - 1]) &&
                     (v & top) != top && level(t, part, r, column[i]) == 0);
        }
    }
    need(f, "E_OUTLIER", row[n] == nnz);
}

static void verify_set(File *set, u32 count) {
    u8 *part[4];
    for (File *f = set; f < set + count; f++) {
        u64 end = 0, data = f->section[f->of[DATA]].at;
        for (u64 i = 0; i < f->tensors * 4; i++) {
            Tensor *t = f->tensor + i / 4;
            if (!t->part[i % 4].size)
                continue;
            need(f, "E_DATA_GAP",
                 f->s.incompat || zero_in_file(f, data + end, data + t->part[i % 4].at));
            walk_part(f, t, i % 4, NULL);
            end = t->part[i % 4].at + t->part[i % 4].size;
        }
    }
    for (File *f = set; f < set + count; f++)
        for (Tensor *t = f->tensor; t < f->tensor + f->tensors; t++)
            if (t->part[3].size && !t->reserved[0]) {
                load_parts(f, t, part);
                check_outliers(f, t, part);
                free_parts(part);
            }
    need(set, "E_UNSUPPORTED", !undecoded);
}

static void print_values(const Tensor *t, u8 *part[4]) {
    const u64 *row = (const void *)part[3];
    const u32 *column = t->part[3].size ? (const void *)(row + rows(t) + 1) : NULL;
    u64 nnz = column ? t->extra : 0, o = 0, J = t->kind == GROUPED ? groups(t) : 0;
    printf(" ");
    for (u64 i = 0; t->kind != GROUPED && i < t->part[0].size; i++)
        printf("%02x", part[0][i]);
    for (u64 r = 0; t->kind == GROUPED && r < rows(t); r++)
        for (u64 c = 0; c < columns(t); c++) {
            float w =
                number(part[1], r * J + c / t->group, t->scale_dtype) * (float)level(t, part, r, c);
            if (o < nnz && o < row[r + 1] && column[o] == c)
                w = number((const u8 *)column + align(4 * nnz, 8), o++, t->dtype);
            for (int i = 0; i < 4; i++)
                printf("%02x", ((const u8 *)&w)[i]);
        }
}

static void print_tensor(const File *f, Tensor *t, bool values) {
    static const char *const kinds[] = {"dense", "grouped", "alias", "auxiliary"};
    u8 *part[4];
    printf("tensor %.*s %s %s ", (int)t->name_size, f->names + t->name_at, kinds[t->kind],
           DTYPES[t->dtype]);
    for (int k = 0; k < t->rank; k++)
        printf("%s%llu", k ? "x" : "", (unsigned long long)t->dim[k]);
    if (t->kind == GROUPED)
        printf(" bits=%u scales=%s zeros=%u group=%u outliers=%llu", t->bits,
               DTYPES[t->scale_dtype], t->zero_mode, t->group, (unsigned long long)t->extra);
    if (t->kind == ALIAS)
        printf(" of=%.*s", (int)f->tensor[t->extra].name_size,
               f->names + f->tensor[t->extra].name_at);
    if (values && t->kind != ALIAS) {
        load_parts(f, t, part);
        print_values(t, part);
        free_parts(part);
    }
    putchar('\n');
}

int main(int argc, char **argv) {
    bool values = argc == 3 && !strcmp(argv[1], "--values");
    u32 count;
    if (argc != 2 && !values) {
        fputs("usage: ingot_reader [--values] FILE\n", stderr);
        return 2;
    }
    File *set = open_set(argv[argc - 1], &count);
    verify_set(set, count);
    for (u32 i = 0; i < count; i++)
        for (u64 k = 0; k < set[i].tensors; k++)
            print_tensor(set + i, set[i].tensor + k, values);
    puts("OK");
    return fflush(stdout) ? 2 : 0;
}
