/* Byte-level BPE: split UTF-8 texts into words, and words into tokens.

   lit_gpt/data/compiled_bpe.py compiles this file once per machine. Each text ends with the byte END_OF_TEXT, which UTF-8
   never contains, so that no function needs a length; eight bytes may be read behind the last one. Several threads may
   encode with one `Encoder`: its table of known words only grows, by atomic operations. */

#include <stdint.h>
#include <string.h>

#define END_OF_TEXT 0xFF
#define LONGEST 1024 /* bytes of a word: merges take quadratic time */
#define PROBES 32   /* slots that a word can be in, which bounds the time of texts made to collide */
#define NONE UINT32_MAX

/* Classes of characters. UPPER and LOWER overlap: neither case, and marks. */
enum { LETTER = 1, NUMBER = 2, SPACE = 4, CUT = 8, UPPER = 16, LOWER = 32, END = 64 };
/* Kinds of patterns: the words of GPT-2; of GPT-4; of GPT-4o, which start at changes to upper case. */
enum { GPT2, GPT4, GPT4O };

typedef struct {
    uint64_t pair; /* left << 32 | right */
    uint32_t rank, merged;
} Merge;

typedef struct {
    const uint8_t *classes;                  /* by code point */
    const uint32_t *bytes;                   /* id of each single byte; NONE: it is dropped */
    Merge *merges;                           /* hash table; `pair` of a free slot is UINT64_MAX */
    uint64_t *slots;                         /* hash table of known words: hash << 32 | entry, 0 if free */
    uint32_t *entries;                       /* an entry: bytes << 16 | ids; the ids; the bytes. Entry 0 is unused */
    int64_t merge_mask, slot_mask, capacity; /* slots - 1 (numbers of slots are powers of two); size of `entries` */
    int64_t used;                            /* above `capacity`: the table is full */
    int64_t kind, contractions, digits, cut; /* the pattern; the longest number; whether words end at CUT characters */
} Encoder;

/* ---- characters ---- */

typedef const uint8_t *Text;

static inline int size(Text p) { return *p < 0x80 ? 1 : *p < 0xE0 ? 2 : *p < 0xF0 ? 3 : 4; }

static inline int class_of(const Encoder *e, Text p) {
    uint32_t c = *p;
    if (c < 0x80) return e->classes[c];
    if (c == END_OF_TEXT) return END;
    if (c < 0xE0) return e->classes[(c & 0x1F) << 6 | (p[1] & 0x3F)];
    if (c < 0xF0) return e->classes[(c & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F)];
    return e->classes[(c & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 | (p[3] & 0x3F)];
}

/* Skip characters that have exactly the classes `value` of those in `mask`. */
static inline Text skip(const Encoder *e, Text p, int mask, int value) {
    while ((class_of(e, p) & mask) == value) p += size(p);
    return p;
}

/* ---- words ---- */

/* Skip 's, 't, 're, 've, 'm, 'll or 'd. In any case, s also includes U+017F, the long s. */
static Text skip_contraction(Text p, int any_case) {
    if (*p != '\'') return p;
    int fold = any_case ? 0x20 : 0, first = p[1] | fold;
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return p + 2;
    if ((first == 'r' || first == 'v') && (p[2] | fold) == 'e') return p + 3;
    if (first == 'l' && (p[2] | fold) == 'l') return p + 3;
    return any_case && p[1] == 0xC5 && p[2] == 0xBF ? p + 3 : p;
}

/* `\s*[\r\n]+|\s+(?!\S)|\s+`, the first one except in GPT-2 */
static Text skip_spaces(const Encoder *e, Text p) {
    Text last = p, line = NULL, q = p;
    for (; class_of(e, q) & SPACE; q += size(q)) {
        last = q;
        if (*q == '\n' || *q == '\r') line = q + 1;
    }
    if (line && e->kind != GPT2) return line;
    return class_of(e, q) & END || last == p ? q : last;
}

/* `UPPER*LOWER+`, where the last UPPER may have to be the first LOWER */
static Text skip_lower(const Encoder *e, Text p) {
    Text end = p, q = p;
    for (int c; (c = class_of(e, q)) & UPPER;) {
        q += size(q);
        if (c & LOWER) end = q;
    }
    return class_of(e, q) & LOWER ? skip(e, q, LOWER, LOWER) : end;
}

/* Return the end of the word at p. */
static Text skip_word(const Encoder *e, Text p) {
    int first = class_of(e, p), plain = e->kind == GPT2;
    Text q, next = p + size(p), behind_space = *p == ' ' ? next : p;
    if (first & END) return next; /* a digit on its own */
    if (e->contractions && e->kind != GPT4O && (q = skip_contraction(p, !plain)) > p) return q;

    int prefix = plain ? *p == ' ' : !(first & (LETTER | NUMBER)) && *p != '\r' && *p != '\n';
    if (e->kind == GPT4O) {
        /* Each of `prefix?UPPER*LOWER+|prefix?UPPER+LOWER*` with the prefix, then without it. */
        Text starts[2] = {prefix ? next : p, p};
        for (int i = 0; i < 4; i++) {
            Text start = starts[i & 1];
            q = i < 2 ? skip_lower(e, start) : skip(e, start, UPPER, UPPER);
            if (i >= 2 && q > start) q = skip(e, q, LOWER, LOWER);
            if (q > start) return e->contractions ? skip_contraction(q, 1) : q;
        }
    } else {
        if (first & LETTER) return skip(e, p, LETTER, LETTER);
        if (prefix && class_of(e, next) & LETTER) return skip(e, next, LETTER, LETTER);
    }

    Text start = plain ? behind_space : p;
    q = start;
    for (int64_t i = 0; i < e->digits && class_of(e, q) & NUMBER; i++) q += size(q);
    if (q > start) return q;

    q = skip(e, behind_space, LETTER | NUMBER | SPACE | END, 0);
    if (q > behind_space) {
        while (!plain && (*q == '\r' || *q == '\n' || (*q == '/' && e->kind == GPT4O))) q++;
        return q;
    }
    return skip_spaces(e, p);
}

/* Return the end of the part of a word that ends before its next CUT character or is one. */
static Text skip_part(const Encoder *e, Text p, Text end) {
    if (class_of(e, p) & CUT) return p + size(p);
    while (p < end && !(class_of(e, p) & CUT)) p += size(p);
    return p;
}

/* ---- tokens ---- */

/* Return the next eight bytes, or n of them. Words are little-endian. */
static inline uint64_t load(Text p, int64_t n) {
    uint64_t w;
    memcpy(&w, p, 8);
    return n < 8 ? w & (((uint64_t)1 << 8 * n) - 1) : w;
}

static inline uint64_t hash(Text p, int64_t n) {
    uint64_t h = n;
    for (; n > 0; p += 8, n -= 8) {
        h = (h ^ load(p, n)) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
    }
    return h;
}

static inline int same(Text a, Text b, int64_t n) {
    for (; n > 0; a += 8, b += 8, n -= 8)
        if (load(a, n) != load(b, n)) return 0;
    return 1;
}

static inline Merge *find_merge(const Encoder *e, uint32_t left, uint32_t right) {
    uint64_t pair = (uint64_t)left << 32 | right, i = (pair * 0x9E3779B97F4A7C15u) >> 32;
    while (e->merges[i &= e->merge_mask].pair != pair && e->merges[i].pair != UINT64_MAX) i++;
    return &e->merges[i];
}

/* Store count merges (left, right, merged) in order of rank; of equal pairs the last one counts. */
void add_merges(Encoder *e, const uint32_t (*merges)[3], int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        Merge *merge = find_merge(e, merges[i][0], merges[i][1]);
        *merge = (Merge){(uint64_t)merges[i][0] << 32 | merges[i][1], (uint32_t)i, merges[i][2]};
    }
}

/* Merge the pair of lowest rank, the leftmost if there are several, until there is none. Returns the number of ids. */
static int64_t apply_merges(const Encoder *e, Text p, int64_t n, uint32_t *ids) {
    uint32_t ranks[LONGEST], merged[LONGEST];
    int64_t bytes = n;
    n = 0;
    for (int64_t i = 0; i < bytes; i++)
        if (e->bytes[p[i]] != NONE) ids[n++] = e->bytes[p[i]];
    for (int64_t i = 0; i + 1 < n; i++) {
        Merge *merge = find_merge(e, ids[i], ids[i + 1]);
        ranks[i] = merge->rank, merged[i] = merge->merged; /* NONE in a free slot */
    }
    for (;;) {
        int64_t best = 0;
        for (int64_t i = 1; i + 1 < n; i++) best = ranks[i] < ranks[best] ? i : best;
        if (n < 2 || ranks[best] == NONE) return n;
        ids[best] = merged[best];
        n--;
        for (int64_t i = best + 1; i < n; i++) ids[i] = ids[i + 1], ranks[i] = ranks[i + 1], merged[i] = merged[i + 1];
        for (int64_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            Merge *merge = find_merge(e, ids[i], ids[i + 1]);
            ranks[i] = merge->rank, merged[i] = merge->merged;
        }
    }
}

/* Add a word to the table unless it is full; returns whether it was added. */
static int remember(Encoder *e, uint64_t h, Text p, int64_t n, const uint32_t *ids, int64_t count) {
    int64_t words = 1 + count + (n + 3) / 4;
    if (e->used > e->capacity) return 0;
    int64_t at = __atomic_fetch_add(&e->used, words, __ATOMIC_RELAXED);
    if (at + words + 2 > e->capacity) return 0; /* `load` reads up to two words more */
    uint32_t *entry = e->entries + at;
    entry[0] = (uint32_t)(n << 16 | count);
    memcpy(entry + 1, ids, 4 * count);
    memcpy(entry + 1 + count, p, n);
    for (int64_t i = 0; i < PROBES; i++) {
        uint64_t none = 0, *slot = &e->slots[((h >> 32) + i) & e->slot_mask];
        /* Release: who sees the slot sees the entry. */
        if (__atomic_compare_exchange_n(slot, &none, h << 32 | at, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) return 1;
    }
    return 0;
}

static inline int64_t encode_word(Encoder *e, Text p, int64_t n, uint32_t *ids) {
    uint64_t h = hash(p, n);
    for (int64_t i = 0; i < PROBES; i++) {
        uint64_t slot = __atomic_load_n(&e->slots[((h >> 32) + i) & e->slot_mask], __ATOMIC_ACQUIRE);
        if (!slot) break;
        if (slot >> 32 != (uint32_t)h) continue;
        const uint32_t *entry = e->entries + (uint32_t)slot;
        int64_t count = entry[0] & 0xFFFF;
        if (entry[0] >> 16 != n || !same((Text)(entry + 1 + count), p, n)) continue;
        for (int64_t j = 0; j < count; j++) ids[j] = entry[1 + j];
        return count;
    }
    int64_t count = apply_merges(e, p, n, ids);
    remember(e, h, p, n, ids, count);
    return count;
}

/* Store words that are tokens, each followed by END_OF_TEXT; returns whether all fit. */
int add_words(Encoder *e, Text p, int64_t count, const uint32_t *ids) {
    for (int64_t i = 0; i < count; i++) {
        Text end = memchr(p, END_OF_TEXT, LONGEST + 1);
        if (!end) return 0;
        if (!remember(e, hash(p, end - p), p, end - p, ids + i, 1)) return 0;
        p = end + 1;
    }
    return 1;
}

/* Encode count texts. ids: at most one for each byte. ends[i]: where the ids of text i end, or -1 for a text with a word
   of more than LONGEST bytes, which is not encoded. */
void encode(Encoder *e, Text p, int64_t count, uint32_t *ids, int64_t *ends) {
    uint32_t *out = ids;
    for (int64_t i = 0; i < count; i++) {
        uint32_t *start = out;
        ends[i] = 0;
        for (Text word = p, end; *p != END_OF_TEXT && !ends[i]; p = end) {
            if (p == word) word = skip_word(e, p);
            end = e->cut ? skip_part(e, p, word) : word;
            if (end - p > LONGEST)
                ends[i] = -1;
            else
                out += encode_word(e, p, end - p, out);
        }
        if (ends[i]) out = start;
        while (*p++ != END_OF_TEXT) {}
        if (!ends[i]) ends[i] = out - ids;
    }
}
