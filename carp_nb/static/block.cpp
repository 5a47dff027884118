// A ByteNet block forwards and backwards, a tile of positions at a time so that it stays in the cache.
// Tensors are row-major: activations [B L, channels]; weights [in, out], so that a product is rows times matrix.
// S is float, or double for tests of the gradient.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

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
template <class S>
static void activate(int64_t rows, int64_t d, const S* __restrict x, const S* __restrict mean, const S* __restrict rstd, const S* __restrict gain, const S* __restrict shift, const S* __restrict mask, S* __restrict a) {
    for (int64_t i = 0; i < rows; i++) {
        const S m = mean[i], s = rstd[i], keep = mask ? mask[i] : S(1);
        const S* __restrict r = x + i * d;
        S* __restrict out = a + i * d;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) {
            const S n = (r[j] - m) * s * gain[j] + shift[j];
            S cdf, slope;
            normal(n, cdf, slope);
            out[j] = n * cdf * keep;
        }
    }
}

// From g, the gradient of gelu(layer norm of x): dx, and sums for gain and shift. With AGAIN the activation goes to a.
template <class S, bool AGAIN>
static void activate_back(int64_t rows, int64_t d, const S* __restrict x, const S* __restrict mean, const S* __restrict rstd, const S* __restrict gain, const S* __restrict shift, const S* __restrict mask,
                          const S* __restrict g, S* a, S* __restrict dx, S* __restrict dgain, S* __restrict dshift) {
    for (int64_t i = 0; i < rows; i++) {
        const S m = mean[i], s = rstd[i], keep = mask ? mask[i] : S(1);
        const S* __restrict r = x + i * d;
        const S* __restrict gi = g + i * d;
        S* __restrict out = dx + i * d;
        S* __restrict ai = AGAIN ? a + i * d : nullptr;
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
        sum /= d;
        product /= d;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) out[j] = s * (out[j] - sum - (r[j] - m) * s * product);
    }
}

template <class S>
static void pack(int64_t rows, int64_t d, const S* __restrict x, S* __restrict panels) {
    constexpr int W = 2 * LANES<S>;
    for (int64_t j = 0; j < d; j += W)
        for (int64_t i = 0; i < rows; i++) memcpy(panels + j * rows + i * W, x + i * d + j, W * sizeof(S));
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

template <class S>
struct Block {  // pointers in the order that Python gives them
    const S *x, *mask, *gain1, *shift1, *down, *bdown, *gain2, *shift2, *conv, *bconv, *gain3, *shift3, *up, *bup;
    S *u, *z, *c, *y, *mean1, *rstd1, *mean2, *rstd2, *mean3, *rstd3;
    const S *g, *up_t, *conv_t, *down_t;
    S *dc, *gx, *ggain1, *gshift1, *gdown, *gbdown, *ggain2, *gshift2, *gconv, *gbconv, *ggain3, *gshift3, *gup, *gbup;
};

template <class S>
static void narrow(const Shape& s, const Block<S>& b, int64_t begin, int64_t end) {
    std::vector<S> a(TILE * s.d);
    for_tiles(s, begin, end, [&](int64_t first, int64_t p, int64_t q) {
        const int64_t r = first + p, n = q - p;
        statistics(n, s.d, b.x + r * s.d, b.mean1 + r, b.rstd1 + r);
        activate<S>(n, s.d, b.x + r * s.d, b.mean1 + r, b.rstd1 + r, b.gain1, b.shift1, nullptr, a.data());
        S* u = b.u + r * s.h;
        fill(n, s.h, b.bdown, u);
        product(n, s.h, s.d, a.data(), s.d, 1, b.down, u, s.h);
        statistics(n, s.h, u, b.mean2 + r, b.rstd2 + r);
        activate(n, s.h, u, b.mean2 + r, b.rstd2 + r, b.gain2, b.shift2, b.mask + r, b.z + r * s.h);
    });
}

template <class S>
static void widen(const Shape& s, const Block<S>& b, int64_t begin, int64_t end) {
    std::vector<S> a(TILE * s.h);
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
        activate<S>(n, s.h, c, b.mean3 + r, b.rstd3 + r, b.gain3, b.shift3, nullptr, a.data());
        S* y = b.y + r * s.d;
        const S* x = b.x + r * s.d;
        for (int64_t i = 0; i < n; i++)
#pragma omp simd
            for (int64_t j = 0; j < s.d; j++) y[i * s.d + j] = x[i * s.d + j] + b.bup[j];
        product(n, s.d, s.h, a.data(), s.h, 1, b.up, y, s.d);
    });
}

template <class S>
static void widen_back(const Shape& s, const Block<S>& b, int64_t begin, int64_t end) {
    std::vector<S> a(TILE * s.h), da(TILE * s.h), panels(TILE * s.d);
    for_tiles(s, begin, end, [&](int64_t first, int64_t p, int64_t q) {
        const int64_t r = first + p, n = q - p;
        const S* g = b.g + r * s.d;
        S* dc = b.dc + r * s.h;
        memset(da.data(), 0, n * s.h * sizeof(S));
        product(n, s.h, s.d, g, s.d, 1, b.up_t, da.data(), s.h);
        activate_back<S, true>(n, s.h, b.c + r * s.h, b.mean3 + r, b.rstd3 + r, b.gain3, b.shift3, nullptr, da.data(), a.data(), dc, b.ggain3, b.gshift3);
        pack(n, s.d, g, panels.data());
        product(s.h, s.d, n, a.data(), 1, s.h, panels.data(), b.gup, s.d);
        add_rows(n, s.d, g, b.gbup);
        add_rows(n, s.h, dc, b.gbconv);
        int64_t packed = 0;
        for (int64_t j = 0; j < s.k; j++) {
            const int64_t offset = (j - s.k / 2) * s.dilation;
            int64_t lo = p, hi = q;
            clip(s.L, offset, lo, hi);
            if (lo >= hi) continue;
            if (hi - lo != packed) pack(packed = hi - lo, s.h, b.dc + (first + lo) * s.h, panels.data());
            product(s.h, s.h, hi - lo, b.z + (first + lo + offset) * s.h, 1, s.h, panels.data(), b.gconv + j * s.h * s.h, s.h);
        }
    });
}

template <class S>
static void narrow_back(const Shape& s, const Block<S>& b, int64_t begin, int64_t end) {
    std::vector<S> a(TILE * s.d), dz(TILE * s.h), du(TILE * s.h), da(TILE * s.d), panels(TILE * s.h);
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
        activate_back<S, false>(n, s.h, b.u + r * s.h, b.mean2 + r, b.rstd2 + r, b.gain2, b.shift2, b.mask + r, dz.data(), nullptr, du.data(), b.ggain2, b.gshift2);
        memset(da.data(), 0, n * s.d * sizeof(S));
        product(n, s.d, s.h, du.data(), s.h, 1, b.down_t, da.data(), s.d);
        S* gx = b.gx + r * s.d;
        activate_back<S, true>(n, s.d, b.x + r * s.d, b.mean1 + r, b.rstd1 + r, b.gain1, b.shift1, nullptr, da.data(), a.data(), gx, b.ggain1, b.gshift1);
        pack(n, s.h, du.data(), panels.data());
        product(s.d, s.h, n, a.data(), 1, s.d, panels.data(), b.gdown, s.h);
        add_rows(n, s.h, du.data(), b.gbdown);
        const S* g = b.g + r * s.d;
#pragma omp simd
        for (int64_t j = 0; j < n * s.d; j++) gx[j] += g[j];
    });
}

extern "C" int lanes(int bytes) { return BYTES / bytes; }
extern "C" int64_t tile() { return TILE; }

#define STAGE(name)                                                                                             \
    extern "C" void name##_float(const Shape* s, const Block<float>* b, int64_t begin, int64_t end) {           \
        name<float>(*s, *b, begin, end);                                                                        \
    }                                                                                                           \
    extern "C" void name##_double(const Shape* s, const Block<double>* b, int64_t begin, int64_t end) {         \
        name<double>(*s, *b, begin, end);                                                                       \
    }
STAGE(narrow)
STAGE(widen)
STAGE(widen_back)
STAGE(narrow_back)
