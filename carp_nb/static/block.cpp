// A ByteNet block forwards and backwards, a tile of positions at a time so that it stays in the cache.
// Tensors are row-major: activations [B L, channels]; weights [in, out], so that a product is rows times matrix.
// No block has more than WIDEST channels, which the compiler is told.
// S is float, or double for tests of the gradient. T is what matrix products take in: S, or Half for a block in bfloat16,
// whose products, sums, norms and activations stay in float.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#if defined(__AMX_BF16__) && defined(__linux__)
#define AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#ifdef __AVX512F__
constexpr int BYTES = 64;
#else
constexpr int BYTES = 32;
#endif
constexpr int64_t TILE = 64;  // positions
constexpr int ROWS = 6;       // of the product that is kept in registers, two vectors wide

template <class S> struct Vector;
template <> struct Vector<float> { typedef float type __attribute__((vector_size(BYTES), aligned(4))); };
template <> struct Vector<double> { typedef double type __attribute__((vector_size(BYTES), aligned(8))); };
template <class S> constexpr int LANES = BYTES / sizeof(S);

// C[i, :2 vectors] += sum_k A(i, k) B[k, :2 vectors] for R rows
template <class S, int R>
static inline void micro(int64_t K, const S* A, int64_t ai, int64_t ak, const S* B, S* C, int64_t ldc) {
    typedef typename Vector<S>::type V;
    constexpr int W = LANES<S>;
    V c0[R], c1[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        c0[i] = *(const V*)(C + i * ldc);
        c1[i] = *(const V*)(C + i * ldc + W);
    }
#pragma GCC unroll 4
    for (int64_t k = 0; k < K; k++) {
        const V b0 = *(const V*)(B + 2 * W * k), b1 = *(const V*)(B + 2 * W * k + W);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            const S a = A[i * ai + k * ak];
            c0[i] += a * b0;
            c1[i] += a * b1;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        *(V*)(C + i * ldc) = c0[i];
        *(V*)(C + i * ldc + W) = c1[i];
    }
}

// C [M, N] += A [M, K] B [K, N]; B lies in panels of two vectors of columns, one panel [K, 2 vectors] after the other
template <class S>
static void product(int64_t M, int64_t N, int64_t K, const S* A, int64_t ai, int64_t ak, const S* panels, S* C, int64_t ldc) {
    constexpr int W = 2 * LANES<S>;
    for (int64_t j = 0; j < N; j += W) {
        const S* B = panels + j * K;
        int64_t i = 0;
        for (; i + ROWS <= M; i += ROWS) micro<S, ROWS>(K, A + i * ai, ai, ak, B, C + i * ldc + j, ldc);
        const S* a = A + i * ai;
        S* c = C + i * ldc + j;
        switch (M - i) {
            case 5: micro<S, 5>(K, a, ai, ak, B, c, ldc); break;
            case 4: micro<S, 4>(K, a, ai, ak, B, c, ldc); break;
            case 3: micro<S, 3>(K, a, ai, ak, B, c, ldc); break;
            case 2: micro<S, 2>(K, a, ai, ak, B, c, ldc); break;
            case 1: micro<S, 1>(K, a, ai, ak, B, c, ldc); break;
        }
    }
}

template <class S>
static void pack(int64_t rows, int64_t d, const S* __restrict x, S* __restrict panels) {
    constexpr int W = 2 * LANES<S>;
    for (int64_t j = 0; j < d; j += W)
        for (int64_t i = 0; i < rows; i++) memcpy(panels + j * rows + i * W, x + i * d + j, W * sizeof(S));
}

// sum_k A(k, i) B[k, :] is added to C[i, :]; A is read down its columns
template <class S>
static void product_across(int64_t M, int64_t N, int64_t K, const S* A, int64_t lda, const S* panels, S* C, int64_t ldc, S*) {
    product(M, N, K, A, 1, lda, panels, C, ldc);
}

// What a stage needs of the processor while it computes
template <class T>
struct Tiles {
    Tiles() {}
};

// Where the numbers are computed that are to be at `target`, and how they get there
template <class S>
static inline S* beside(S* target, S*) { return target; }
template <class S>
static inline void round_to(int64_t, const S*, S*) {}
template <class S>
static inline const S* rounded(int64_t, const S* x, S*) { return x; }

#ifdef __AVX512BF16__
struct Half {  // bfloat16
    uint16_t bits;
};

static inline float* beside(Half*, float* buffer) { return buffer; }
// n is a multiple of 16
static inline void round_to(int64_t n, const float* x, Half* target) {
    for (int64_t i = 0; i < n; i += 16) _mm256_storeu_si256((__m256i*)(target + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
}

static inline const Half* rounded(int64_t n, const float* x, Half* buffer) {
    round_to(n, x, buffer);
    return buffer;
}

// Positions that a product sums over are filled up with zeros to as many as one tile of AMX holds
static inline int64_t filled(int64_t rows) { return (rows + 31) / 32 * 32; }

// As above for Half: two neighbours along k lie in one 32-bit lane
template <int R>
static inline void micro(int64_t K, const Half* A, int64_t ai, const Half* B, float* C, int64_t ldc) {
    __m512 c0[R], c1[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        c0[i] = _mm512_loadu_ps(C + i * ldc);
        c1[i] = _mm512_loadu_ps(C + i * ldc + 16);
    }
#pragma GCC unroll 4
    for (int64_t k = 0; k < K; k += 2) {
        const __m512bh b0 = (__m512bh)_mm512_loadu_si512(B + 32 * k), b1 = (__m512bh)_mm512_loadu_si512(B + 32 * k + 32);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            int32_t pair;
            memcpy(&pair, A + i * ai + k, 4);
            const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
            c0[i] = _mm512_dpbf16_ps(c0[i], a, b0);
            c1[i] = _mm512_dpbf16_ps(c1[i], a, b1);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        _mm512_storeu_ps(C + i * ldc, c0[i]);
        _mm512_storeu_ps(C + i * ldc + 16, c1[i]);
    }
}

#ifdef AMX
// The system lets a process use AMX once it has asked
static bool may_use_tiles() {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return granted;
}

// For its lifetime eight tiles of 16 rows by 64 bytes; what was set before comes back
template <>
struct Tiles<Half> {
    alignas(64) uint8_t before[64];
    bool ready;
    Tiles() : ready(may_use_tiles()) {
        if (!ready) return;
        _tile_storeconfig(before);
        alignas(64) uint8_t config[64] = {1};  // the kind of table
        for (int i = 0; i < 8; i++) {
            config[16 + 2 * i] = 64;  // bytes of a row
            config[48 + i] = 16;      // rows
        }
        _tile_loadconfig(config);
    }
    ~Tiles() {
        if (!ready) return;
        if (before[0]) _tile_loadconfig(before);
        else _tile_release();
    }
};

// C [16 or 32, 32] += A [16 or 32, K] B [K, 32]
template <bool TWO>
static inline void amx(int64_t K, const Half* A, int64_t ai, const Half* B, float* C, int64_t ldc) {
    const int64_t row = ldc * 4;
    _tile_loadd(0, C, row);
    _tile_loadd(1, C + 16, row);
    if (TWO) {
        _tile_loadd(2, C + 16 * ldc, row);
        _tile_loadd(3, C + 16 * ldc + 16, row);
    }
    for (int64_t k = 0; k < K; k += 32) {
        _tile_loadd(4, A + k, ai * 2);
        _tile_loadd(6, B + 32 * k, 128);
        _tile_loadd(7, B + 32 * k + 32, 128);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (TWO) {
            _tile_loadd(5, A + 16 * ai + k, ai * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, C, row);
    _tile_stored(1, C + 16, row);
    if (TWO) {
        _tile_stored(2, C + 16 * ldc, row);
        _tile_stored(3, C + 16 * ldc + 16, row);
    }
}
#endif

// K is a multiple of 32
static void product(int64_t M, int64_t N, int64_t K, const Half* A, int64_t ai, int64_t, const Half* panels, float* C, int64_t ldc) {
    for (int64_t j = 0; j < N; j += 32) {
        const Half* B = panels + j * K;
        int64_t i = 0;
#ifdef AMX
        if (may_use_tiles()) {
            for (; i + 32 <= M; i += 32) amx<true>(K, A + i * ai, ai, B, C + i * ldc + j, ldc);
            for (; i + 16 <= M; i += 16) amx<false>(K, A + i * ai, ai, B, C + i * ldc + j, ldc);
        }
#endif
        for (; i + ROWS <= M; i += ROWS) micro<ROWS>(K, A + i * ai, ai, B, C + i * ldc + j, ldc);
        for (; i < M; i++) micro<1>(K, A + i * ai, ai, B, C + i * ldc + j, ldc);
    }
}

// Transposes 16 rows of 16 numbers: of pairs of rows and columns 1, 2, 4 and 8 apart, those off the diagonal change places
static inline void transpose(__m512i (&row)[16]) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
    for (int apart = 1; apart < 16; apart *= 2) {
        const __mmask16 right = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(apart));
        const __m512i by = _mm512_set1_epi32(apart);
        // an index of 16 and more is of the second row
        const __m512i upper = _mm512_mask_add_epi32(lane, right, _mm512_sub_epi32(lane, by), _mm512_set1_epi32(16));
        const __m512i lower = _mm512_mask_add_epi32(_mm512_add_epi32(lane, by), right, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            if (i & apart) continue;
            const __m512i first = row[i], second = row[i + apart];
            row[i] = _mm512_permutex2var_epi32(first, upper, second);
            row[i + apart] = _mm512_permutex2var_epi32(first, lower, second);
        }
    }
}

// 16 numbers of rows k and k + 1, in pairs; zeros beyond the last row
static inline __m512i pairs(const Half* x, int64_t ld, int64_t k, int64_t rows) {
    if (k >= rows) return _mm512_setzero_si512();
    const __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(x + k * ld)));
    if (k + 1 >= rows) return first;
    const __m512i second = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(x + (k + 1) * ld)));
    return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
}

// The columns of A become rows of a buffer first
static void product_across(int64_t M, int64_t N, int64_t K, const Half* A, int64_t lda, const Half* panels, float* C, int64_t ldc, Half* rows) {
    const int64_t all = filled(K);
    for (int64_t k = 0; k < all; k += 32)
        for (int64_t i = 0; i < M; i += 16) {
            __m512i block[16];
            for (int p = 0; p < 16; p++) block[p] = pairs(A + i, lda, k + 2 * p, K);
            transpose(block);
            for (int p = 0; p < 16; p++) _mm512_storeu_si512(rows + (i + p) * all + k, block[p]);
        }
    product(M, N, all, rows, all, 1, panels, C, ldc);
}

static void pack(int64_t rows, int64_t d, const Half* x, Half* panels) {
    const int64_t all = filled(rows);
    for (int64_t j = 0; j < d; j += 32)
        for (int64_t k = 0; k < all; k += 2)
            for (int64_t c = 0; c < 32; c += 16) _mm512_storeu_si512(panels + j * all + 32 * k + 2 * c, pairs(x + j + c, d, k, rows));
}
#endif

// exp for x <= 0; below -87 it is exp(-87), which no sum here notices
static inline float exp_(float x) {
    x = x < -87.f ? -87.f : x;
    const float n = __builtin_rintf(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

// half of erfc(y) exp(y^2) for y >= 0, a polynomial in 1 / (1 + y / 2) fitted in double precision
static inline float half_erfcx(float y) {
    const float t = 1.f / (1.f + 0.5f * y);
    float p = 7.554874962e-03f;
    p = p * t - 6.902826959e-02f;
    p = p * t + 2.311740717e-01f;
    p = p * t - 3.562983051e-01f;
    p = p * t + 2.274518796e-01f;
    p = p * t - 5.767513593e-02f;
    p = p * t + 1.155289917e-01f;
    p = p * t + 1.187730265e-01f;
    p = p * t + 1.414894771e-01f;
    p = p * t + 1.410293823e-01f;
    return p * t;
}

// the normal distribution function of x, and x times its density
static inline void normal(float x, float& cdf, float& slope) {
    const float y = __builtin_fabsf(x) * 0.70710678f;
    const float e = exp_(-0.5f * x * x);
    const float tail = half_erfcx(y) * e;
    cdf = x < 0.f ? tail : 1.f - tail;
    slope = x * e * 0.39894228f;
}
static inline void normal(double x, double& cdf, double& slope) {
    cdf = 0.5 * std::erfc(-x * 0.70710678118654752440);
    slope = x * std::exp(-0.5 * x * x) * 0.39894228040143267794;
}

// layer norm of `rows` rows; mean and 1 / standard deviation are kept
template <class S>
static void statistics(int64_t rows, int64_t d, const S* __restrict x, S* __restrict mean, S* __restrict rstd) {
    for (int64_t i = 0; i < rows; i++) {
        const S* __restrict r = x + i * d;
        S sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < d; j++) sum += r[j];
        const S m = sum / d;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < d; j++) squares += (r[j] - m) * (r[j] - m);
        mean[i] = m;
        rstd[i] = 1 / std::sqrt(squares / d + S(1e-5));
    }
}

// a = gelu(layer norm of x) times the mask (null: all 1)
template <class S, class T>
static void activate(int64_t rows, int64_t d, const S* __restrict x, const S* __restrict mean, const S* __restrict rstd, const S* __restrict gain, const S* __restrict shift, const S* __restrict mask, T* a) {
    S line[WIDEST];
    for (int64_t i = 0; i < rows; i++) {
        const S m = mean[i], s = rstd[i], keep = mask ? mask[i] : S(1);
        const S* __restrict r = x + i * d;
        S* __restrict out = beside(a + i * d, line);
#pragma omp simd
        for (int64_t j = 0; j < d; j++) {
            const S n = (r[j] - m) * s * gain[j] + shift[j];
            S cdf, slope;
            normal(n, cdf, slope);
            out[j] = n * cdf * keep;
        }
        round_to(d, out, a + i * d);
    }
}

// From g, the gradient of gelu(layer norm of x): dx, which may be g, and sums for gain and shift. With AGAIN the activation goes to a.
template <bool AGAIN, class S, class T>
static void activate_back(int64_t rows, int64_t d, const S* __restrict x, const S* __restrict mean, const S* __restrict rstd, const S* __restrict gain, const S* __restrict shift, const S* __restrict mask,
                          const S* g, T* a, S* dx, S* __restrict dgain, S* __restrict dshift) {
    S line[WIDEST];
    for (int64_t i = 0; i < rows; i++) {
        const S m = mean[i], s = rstd[i], keep = mask ? mask[i] : S(1);
        const S* __restrict r = x + i * d;
        const S* gi = g + i * d;
        S* out = dx + i * d;
        S* __restrict ai = AGAIN ? beside(a + i * d, line) : nullptr;
        S sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t j = 0; j < d; j++) {
            const S hat = (r[j] - m) * s, n = hat * gain[j] + shift[j];
            S cdf, slope;
            normal(n, cdf, slope);
            if (AGAIN) ai[j] = n * cdf;
            const S dn = gi[j] * keep * (cdf + slope);
            dgain[j] += dn * hat;
            dshift[j] += dn;
            const S dhat = dn * gain[j];
            out[j] = dhat;
            sum += dhat;
            product += dhat * hat;
        }
        if (AGAIN) round_to(d, ai, a + i * d);
        sum /= d;
        product /= d;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) out[j] = s * (out[j] - sum - (r[j] - m) * s * product);
    }
}

template <class S>
static void fill(int64_t rows, int64_t d, const S* __restrict bias, S* __restrict y) {
    for (int64_t i = 0; i < rows; i++) memcpy(y + i * d, bias, d * sizeof(S));
}

template <class S>
static void add_rows(int64_t rows, int64_t d, const S* __restrict x, S* __restrict sum) {
    for (int64_t i = 0; i < rows; i++)
#pragma omp simd
        for (int64_t j = 0; j < d; j++) sum[j] += x[i * d + j];
}

struct Shape {
    int64_t L, d, h, k, dilation;
};

// calls f(first row of the sequence, first position, position after the last) for the tiles `begin` to `end`
template <class F>
static void for_tiles(const Shape& s, int64_t begin, int64_t end, F f) {
    const int64_t per = (s.L + TILE - 1) / TILE;
    for (int64_t t = begin; t < end; t++) {
        const int64_t p = (t % per) * TILE;
        f(t / per * s.L, p, p + TILE < s.L ? p + TILE : s.L);
    }
}

// positions of a tile whose neighbour at `offset` exists
static inline void clip(int64_t L, int64_t offset, int64_t& lo, int64_t& hi) {
    if (lo + offset < 0) lo = -offset;
    if (hi + offset > L) hi = L - offset;
}

template <class S, class T>
struct Block {  // pointers in the order that Python gives them
    const S *x, *mask, *gain1, *shift1;
    const T* down;
    const S *bdown, *gain2, *shift2;
    const T* conv;
    const S *bconv, *gain3, *shift3;
    const T* up;
    const S* bup;
    S* u;
    T* z;
    S *c, *y, *mean1, *rstd1, *mean2, *rstd2, *mean3, *rstd3;
    const S* g;
    const T *up_t, *conv_t, *down_t;
    T* dc;
    S *gx, *ggain1, *gshift1, *gdown, *gbdown, *ggain2, *gshift2, *gconv, *gbconv, *ggain3, *gshift3, *gup, *gbup;
};

template <class S, class T>
static void narrow(const Shape& s, const Block<S, T>& b, int64_t begin, int64_t end) {
    std::vector<T> a(TILE * s.d);
    for_tiles(s, begin, end, [&](int64_t first, int64_t p, int64_t q) {
        const int64_t r = first + p, n = q - p;
        statistics(n, s.d, b.x + r * s.d, b.mean1 + r, b.rstd1 + r);
        activate<S, T>(n, s.d, b.x + r * s.d, b.mean1 + r, b.rstd1 + r, b.gain1, b.shift1, nullptr, a.data());
        S* u = b.u + r * s.h;
        fill(n, s.h, b.bdown, u);
        product(n, s.h, s.d, a.data(), s.d, 1, b.down, u, s.h);
        statistics(n, s.h, u, b.mean2 + r, b.rstd2 + r);
        activate(n, s.h, u, b.mean2 + r, b.rstd2 + r, b.gain2, b.shift2, b.mask + r, b.z + r * s.h);
    });
}

template <class S, class T>
static void widen(const Shape& s, const Block<S, T>& b, int64_t begin, int64_t end) {
    std::vector<T> a(TILE * s.h);
    for_tiles(s, begin, end, [&](int64_t first, int64_t p, int64_t q) {
        const int64_t r = first + p, n = q - p;
        S* c = b.c + r * s.h;
        fill(n, s.h, b.bconv, c);
        for (int64_t j = 0; j < s.k; j++) {
            const int64_t offset = (j - s.k / 2) * s.dilation;
            int64_t lo = p, hi = q;
            clip(s.L, offset, lo, hi);
            if (lo < hi)
                product(hi - lo, s.h, s.h, b.z + (first + lo + offset) * s.h, s.h, 1, b.conv + j * s.h * s.h, b.c + (first + lo) * s.h, s.h);
        }
        statistics(n, s.h, c, b.mean3 + r, b.rstd3 + r);
        activate<S, T>(n, s.h, c, b.mean3 + r, b.rstd3 + r, b.gain3, b.shift3, nullptr, a.data());
        S* y = b.y + r * s.d;
        const S* x = b.x + r * s.d;
        for (int64_t i = 0; i < n; i++)
#pragma omp simd
            for (int64_t j = 0; j < s.d; j++) y[i * s.d + j] = x[i * s.d + j] + b.bup[j];
        product(n, s.d, s.h, a.data(), s.h, 1, b.up, y, s.d);
    });
}

template <class S, class T>
static void widen_back(const Shape& s, const Block<S, T>& b, int64_t begin, int64_t end) {
    const int64_t wide = s.d > s.h ? s.d : s.h;
    std::vector<S> da(TILE * s.h);
    std::vector<T> a(TILE * s.h), across(TILE * s.h), g_(TILE * s.d), panels(TILE * wide);
    for_tiles(s, begin, end, [&](int64_t first, int64_t p, int64_t q) {
        const int64_t r = first + p, n = q - p;
        const T* g = rounded(n * s.d, b.g + r * s.d, g_.data());
        S* dc = beside(b.dc + r * s.h, da.data());
        memset(da.data(), 0, n * s.h * sizeof(S));
        product(n, s.h, s.d, g, s.d, 1, b.up_t, da.data(), s.h);
        activate_back<true>(n, s.h, b.c + r * s.h, b.mean3 + r, b.rstd3 + r, b.gain3, b.shift3, (const S*)nullptr, da.data(), a.data(), dc, b.ggain3, b.gshift3);
        round_to(n * s.h, dc, b.dc + r * s.h);
        pack(n, s.d, g, panels.data());
        product_across(s.h, s.d, n, a.data(), s.h, panels.data(), b.gup, s.d, across.data());
        add_rows(n, s.d, b.g + r * s.d, b.gbup);
        add_rows(n, s.h, dc, b.gbconv);
        int64_t packed = 0;
        for (int64_t j = 0; j < s.k; j++) {
            const int64_t offset = (j - s.k / 2) * s.dilation;
            int64_t lo = p, hi = q;
            clip(s.L, offset, lo, hi);
            if (lo >= hi) continue;
            if (hi - lo != packed) pack(packed = hi - lo, s.h, b.dc + (first + lo) * s.h, panels.data());
            product_across(s.h, s.h, hi - lo, b.z + (first + lo + offset) * s.h, s.h, panels.data(), b.gconv + j * s.h * s.h, s.h, across.data());
        }
    });
}

template <class S, class T>
static void narrow_back(const Shape& s, const Block<S, T>& b, int64_t begin, int64_t end) {
    std::vector<S> dz(TILE * s.h), da(TILE * s.d);
    std::vector<T> a(TILE * s.d), du_(TILE * s.h), across(TILE * s.d), panels(TILE * s.h);
    for_tiles(s, begin, end, [&](int64_t first, int64_t p, int64_t q) {
        const int64_t r = first + p, n = q - p;
        memset(dz.data(), 0, n * s.h * sizeof(S));
        for (int64_t j = 0; j < s.k; j++) {
            const int64_t offset = (s.k / 2 - j) * s.dilation;
            int64_t lo = p, hi = q;
            clip(s.L, offset, lo, hi);
            if (lo < hi)
                product(hi - lo, s.h, s.h, b.dc + (first + lo + offset) * s.h, s.h, 1, b.conv_t + j * s.h * s.h, dz.data() + (lo - p) * s.h, s.h);
        }
        S* gu = dz.data();
        activate_back<false>(n, s.h, b.u + r * s.h, b.mean2 + r, b.rstd2 + r, b.gain2, b.shift2, b.mask + r, dz.data(), (T*)nullptr, gu, b.ggain2, b.gshift2);
        const T* du = rounded(n * s.h, gu, du_.data());
        memset(da.data(), 0, n * s.d * sizeof(S));
        product(n, s.d, s.h, du, s.h, 1, b.down_t, da.data(), s.d);
        S* gx = b.gx + r * s.d;
        activate_back<true>(n, s.d, b.x + r * s.d, b.mean1 + r, b.rstd1 + r, b.gain1, b.shift1, (const S*)nullptr, da.data(), a.data(), gx, b.ggain1, b.gshift1);
        pack(n, s.h, du, panels.data());
        product_across(s.d, s.h, n, a.data(), s.d, panels.data(), b.gdown, s.h, across.data());
        add_rows(n, s.h, gu, b.gbdown);
        const S* g = b.g + r * s.d;
#pragma omp simd
        for (int64_t j = 0; j < n * s.d; j++) gx[j] += g[j];
    });
}

// A stage that several threads compute, a share of the tiles at a time
struct Work {
    void (*stage)(const Shape*, const void*, int64_t, int64_t);
    const Shape* shape;
    const void* const* blocks;  // one for each share, because each has sums of its own
    int64_t tiles, shares;
    std::atomic<int64_t> next;
};

static void take_shares(void* work) {
    Work& w = *(Work*)work;
    for (int64_t i = w.next++; i < w.shares; i = w.next++) w.stage(w.shape, w.blocks[i], w.tiles * i / w.shares, w.tiles * (i + 1) / w.shares);
}

// `parallel` is OpenMP's own way to run a function on its threads; null: new threads do it
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
extern "C" void compute(void (*stage)(const Shape*, const void*, int64_t, int64_t), const Shape* shape, const void* const* blocks, int64_t tiles, int64_t shares, Parallel parallel) {
    Work work{stage, shape, blocks, tiles, shares, {0}};
    if (parallel) return parallel(take_shares, &work, shares, 0);
    std::vector<std::thread> others;
    for (int64_t i = 1; i < shares; i++) others.emplace_back(take_shares, &work);
    take_shares(&work);
    for (auto& other : others) other.join();
}

extern "C" int lanes(int bytes) { return BYTES / bytes; }
extern "C" int64_t tile() { return TILE; }

#define STAGE_OF(name, kind, S, T)                                                                              \
    extern "C" void name##_##kind(const Shape* s, const Block<S, T>* b, int64_t begin, int64_t end) {           \
        Tiles<T> tiles;                                                                                         \
        name<S, T>(*s, *b, begin, end);                                                                         \
    }
#define STAGES(kind, S, T)                                                                                      \
    STAGE_OF(narrow, kind, S, T)                                                                                \
    STAGE_OF(widen, kind, S, T)                                                                                 \
    STAGE_OF(widen_back, kind, S, T)                                                                            \
    STAGE_OF(narrow_back, kind, S, T)

STAGES(float, float, float)
STAGES(double, double, double)
#ifdef __AVX512BF16__
STAGES(half, float, Half)
extern "C" int has_half() { return 1; }
#else
extern "C" int has_half() { return 0; }
#endif
