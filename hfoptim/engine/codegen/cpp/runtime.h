// What every generated kernel includes: number formats, rounding, and how the tensors of a bucket are shared among threads.
// C++'s own headers are left out: reading <algorithm>, <cmath> and <vector> takes a compiler longer than most kernels.
#pragma once
#include <stdint.h>
#include <string.h>
#include <omp.h>

using i64 = int64_t;
using u32 = uint32_t;

// What <cmath> has, by the same functions of the compiler.
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FUNCTION(name) \
  [[gnu::always_inline]] static inline float name(float x) { return __builtin_##name##f(x); } \
  [[gnu::always_inline]] static inline double name(double x) { return __builtin_##name(x); }
#define FUNCTION2(name) \
  [[gnu::always_inline]] static inline float name(float x, float y) { return __builtin_##name##f(x, y); } \
  [[gnu::always_inline]] static inline double name(double x, double y) { return __builtin_##name(x, y); }
namespace math {
FUNCTION(fabs) FUNCTION(floor) FUNCTION(ceil) FUNCTION(trunc) FUNCTION(nearbyint)
FUNCTION(sqrt) FUNCTION(exp2) FUNCTION(expm1) FUNCTION(log) FUNCTION(log2) FUNCTION(log1p)
FUNCTION(sin) FUNCTION(cos) FUNCTION(tanh) FUNCTION(erf)
FUNCTION2(fmod) FUNCTION2(copysign)
[[gnu::always_inline]] static inline bool isfinite(float x) { return __builtin_isfinite(x); }
[[gnu::always_inline]] static inline bool isfinite(double x) { return __builtin_isfinite(x); }
}  // namespace math

static inline i64 least(i64 a, i64 b) { return b < a ? b : a; }
template <class T> static inline void copied(const T* from, i64 n, T* to) { memcpy(to, from, n * sizeof(T)); }
template <class T> static inline void filled(T* to, i64 n, T value) { for (i64 i = 0; i < n; ++i) to[i] = value; }

// Memory that is kept from call to call. What was in it is lost where it grows.
template <class T> struct Buffer {
  T* entries = nullptr;
  i64 room = 0;
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  ~Buffer() { delete[] entries; }
  T* make_room(i64 n) {
    if (n > room) {
      delete[] entries;
      entries = nullptr;  // should there be no memory
      room = 0;
      entries = new T[n]();
      room = n;
    }
    return entries;
  }
  void fill(i64 n, T value) { filled(make_room(n), n, value); }
  T& operator[](i64 i) { return entries[i]; }
};

struct bf16 { uint16_t bits; };
#ifdef __FLT16_MAX__
using f16 = _Float16;
#else  // a compiler without it: float16 is not compiled for
struct f16 { uint16_t bits; f16() = default; explicit f16(float); explicit operator float() const; };
#endif

static inline u32 bits_of(float x) { u32 b; memcpy(&b, &x, 4); return b; }
static inline float float_of(u32 b) { float x; memcpy(&x, &b, 4); return x; }

namespace math {
// Functions of float32 that compilers make vector code of: no calls, no branches, no tables; within 4 units in the last
// place (`cube_root` 1). In float64 they are the library's. The exponential's polynomial is Cephes'.
static inline float chosen(bool first, float a, float b) { return first ? a : b; }
static inline float times_power_of_2(float x, int32_t n) {  // two factors: the result may be subnormal, or overflow
  const int32_t half = n >> 1;
  return x * float_of((u32)(half + 127) << 23) * float_of((u32)(n - half + 127) << 23);
}
static inline double exp(double x) { return __builtin_exp(x); }
static inline float exp(float x) {
  x = chosen(x < -104.0f, -104.0f, chosen(x > 89.0f, 89.0f, x));  // 0 and infinity from there on
  const float shifted = x * 0x1.715476p0f + 0x1.8p23f;  // x / log(2) as an integer, in the last bits
  const float whole = shifted - 0x1.8p23f;
  const float r = (x - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return times_power_of_2(p * (r * r) + r + 1.0f, (int32_t)(bits_of(shifted) - 0x4b400000u));
}
static inline double pow(double x, double y) { return __builtin_pow(x, y); }
static inline float fused(float a, float b, float c) {  // a b + c, rounded once
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  return (float)((double)a * (double)b + (double)c);
#endif
}
// 2^(y log2 |x|), with log2 |x| as a sum of two: both halves of a double would take twice as long. Of a mantissa m it is
// 2 / log(2) atanh((m - 1) / (m + 1)). The polynomials are fitted to the least relative error, 5e-12 and 2e-9.
static inline float pow(float x, float y) {
  const float a = fabs(x);
  const bool small = a < 0x1p-126f;
  const u32 b = bits_of(chosen(small, a * 0x1p24f, a));
  const bool upper = (b & 0x7fffffu) > 0x3504f3u;  // the mantissa is more than sqrt(2)
  const float m = float_of((b & 0x7fffffu) | (upper ? 0x3f000000u : 0x3f800000u));
  const float exponent = (float)((int32_t)(b >> 23) - (upper ? 126 : 127) - (small ? 24 : 0));
  const float above = m - 1.0f, below = m + 1.0f, left = m - (below - 1.0f), share = 1.0f / below;
  const float s = above * share, z = s * s;
  const float s_rest = fused(-s, left, fused(-s, below, above)) * share;
  float p = 3.402390182e-1f;
  p = fused(p, z, 4.117053151e-1f);
  p = fused(p, z, 5.770828724e-1f);
  p = fused(p, z, 9.617967010e-1f);
  const float first = 0x1.715476p1f * s, higher = p * (z * s);  // 0x1.715476p1 + 0x1.4ae0cp-25: 2 / log(2)
  const float first_rest = fused(0x1.715476p1f, s_rest, fused(0x1.4ae0cp-25f, s, fused(0x1.715476p1f, s, -first)));
  const float log = first + higher, log_rest = higher - (log - first) + first_rest;
  const float sum = exponent + log, sum_rest = log - (sum - exponent) + log_rest;
  const float factor = chosen(y < -0x1p32f, -0x1p32f, chosen(y > 0x1p32f, 0x1p32f, y));  // 0 and infinity from there on
  const float all = factor * sum, all_rest = fused(factor, sum_rest, fused(factor, sum, -all));
  const float w = chosen(all < -252.0f, -252.0f, chosen(all > 252.0f, 252.0f, all));
  const float shifted = w + 0x1.8p23f, f = (w - (shifted - 0x1.8p23f)) + all_rest;
  float q = 1.535294432e-4f;
  q = fused(q, f, 1.339939190e-3f);
  q = fused(q, f, 9.618442506e-3f);
  q = fused(q, f, 5.550331250e-2f);
  q = fused(q, f, 2.402264774e-1f);
  q = fused(q, f, 6.931471825e-1f);
  q = fused(q, f, 1.0f);
  float r = times_power_of_2(q, (int32_t)(bits_of(shifted) - 0x4b400000u));
  // What depends on the exponent alone, by arithmetic: loops with choices that are the same for all entries stay scalar.
  const float at_zero = exp2(y * -0x1p127f * 0x1p127f), at_infinity = exp2(y * 0x1p127f * 0x1p127f);
  const float of_nan = sqrt(-fabs(y)) + 1.0f;  // 1 if the exponent is 0
  const float bounded = chosen(fabs(y) >= 0x1p24f, 0.0f, y), twice = bounded - 2.0f * floor(0.5f * bounded);
  const float odd = floor(twice) * (2.0f - ceil(twice));
  const float fraction = sqrt(floor(bounded) - bounded);  // NaN unless the exponent is an integer
  r = chosen(a == 0, at_zero, chosen(a == INFINITY, at_infinity, chosen(a == 1, 1.0f, r)));
  r = chosen((x < 0) & (a < INFINITY), r + fraction, r);
  r *= chosen((bits_of(x) >> 31) != 0, 1.0f - 2.0f * odd, 1.0f);
  return chosen(x != x, of_nan, r);
}
static inline double cube_root(double x) { return pow(x, 1.0 / 3.0); }
static inline float cube_root(float x) {  // x to the power 1/3: of what is negative it is NaN
  const bool small = x < 0x1p-99f;
  const float a = x * chosen(small, 0x1p24f, 0x1p-3f);
  float r = float_of((u32)(int32_t)((float)(int32_t)bits_of(a) * (1.0f / 3.0f)) + 0x2a5137a0u);  // within 4 %
  for (int k = 0; k < 2; ++k) {  // Halley's method
    const float cube = r * r * r;
    r -= r * ((cube - a) / (cube + cube + a));
  }
  r *= chosen(small, 0x1p-8f, 2.0f);
  return chosen((x > 0) & (x < INFINITY), r, chosen((x < 0) & (x > -INFINITY), NAN, fabs(x)));
}
static inline double atan2(double y, double x) { return __builtin_atan2(y, x); }
static inline float atan2(float y, float x) {  // of the lesser over the greater, by a polynomial of its square
  const float a = fabs(x), b = fabs(y), high = chosen(a < b, b, a), low = chosen(a < b, a, b);
  const float t = chosen(low == INFINITY, 1.0f, low / chosen(high < 0x1p-149f, 0x1p-149f, high)), z = t * t;
  float p = 2.920645988e-3f;
  p = fused(p, z, -1.636774465e-2f);
  p = fused(p, z, 4.321156442e-2f);
  p = fused(p, z, -7.552189380e-2f);
  p = fused(p, z, 1.066599339e-1f);
  p = fused(p, z, -1.421105266e-1f);
  p = fused(p, z, 1.999377310e-1f);
  p = fused(p, z, -3.333315253e-1f);
  float r = fused(p * z, t, t);
  r = chosen(a < b, 0x1.921fb6p0f - r, r);
  r = chosen((bits_of(x) >> 31) != 0, 0x1.921fb6p1f - r, r);
  return chosen((x != x) | (y != y), x + y, copysign(r, y));
}
}  // namespace math

static inline float get(float x) { return x; }
static inline double get(double x) { return x; }
static inline float get(f16 x) { return (float)x; }
static inline float get(bf16 x) { return float_of((u32)x.bits << 16); }
static inline void put(float& to, float x) { to = x; }
static inline void put(float& to, double x) { to = (float)x; }
static inline void put(double& to, double x) { to = x; }
static inline void put(f16& to, float x) { to = (f16)x; }
static inline void put(bf16& to, float x) {  // nearest, ties to even
  u32 b = bits_of(x);
  to.bits = x != x ? (uint16_t)0x7fc0 : (uint16_t)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}
static inline float round_bf16(float x) { bf16 b; put(b, x); return get(b); }
static inline float round_f16(float x) { return (float)(f16)x; }

// Random bits of entry `index`: a function of the seed alone, so that a resumed run draws the same.
static inline u32 hashed(u32 index, u32 seed) {
  u32 x = index * 2654435769u + seed;
  x ^= x >> 16; x *= 0x7feb352du; x ^= x >> 15; x *= 0x846ca68bu; x ^= x >> 16;
  return x;
}
static inline u32 salted(u32 seed, u32 salt) { return seed + salt * 0xC2B2AE3Du; }
static inline void put_stochastic(bf16& to, float x, u32 random) {
  u32 b = bits_of(x);
  u32 noise = (b & 0x7f800000u) != 0x7f800000u ? random & 0xffffu : 0u;
  to.bits = x != x ? (uint16_t)0x7fc0 : (uint16_t)((b + noise) >> 16);
}

// A float32 weight as a bfloat16, rounded half up in magnitude, and what is left of the magnitude, in 16 or 8 bits.
static inline float joined(bf16 p, int32_t rest) {
  int32_t magnitude = (int32_t)((u32)(p.bits & 0x7fffu) << 16) + rest;
  return float_of((u32)(magnitude < 0 ? 0 : magnitude) | ((u32)(p.bits & 0x8000u) << 16));
}
static inline float joined(bf16 p, int16_t rest) { return joined(p, (int32_t)rest); }
static inline float joined(bf16 p, int8_t rest) { return joined(p, (int32_t)rest * 256); }
static inline int32_t halved(bf16& p, float x) {
  u32 b = bits_of(x), magnitude = b & 0x7fffffffu;
  magnitude = magnitude > 0x7f800000u ? 0x7fc00000u : magnitude;
  u32 high = (magnitude + 0x8000u) >> 16;
  p.bits = (uint16_t)(high | ((b >> 16) & 0x8000u));
  return (int32_t)(magnitude - (high << 16));
}
static inline void split(bf16& p, int16_t& rest, float x) { rest = (int16_t)halved(p, x); }
static inline void split(bf16& p, int8_t& rest, float x) {
  int32_t r = (halved(p, x) + 128) >> 8;
  rest = (int8_t)(r > 127 ? 127 : r);
}

// A NaN goes through, as in torch. No short circuit: it would keep loops from becoming vector code.
template <class T> static inline T larger(T a, T b) { return (a <= b) | (b != b) ? b : a; }
#pragma omp declare reduction(largest : real : omp_out = larger<real>(omp_out, omp_in)) initializer(omp_priv = -INFINITY)
template <class T> static inline T smaller(T a, T b) { return (a >= b) | (b != b) ? b : a; }
template <class T> static inline T sign(T a) { return (T)((a > 0) - (a < 0)); }

// Short rows, many together. The usual widths are known to the compiler, which then has no loop over a row left. Not
// inlined: they are called for tiles, and compiling them for every call would take longer.
template <i64 C> struct Width { constexpr operator i64() const { return C; } };
template <class T> constexpr bool is_known = true;
template <> constexpr bool is_known<i64> = false;
template <class F> static inline void by_width(i64 C, F f) {
  switch (C) {
    case 4: return f(Width<4>());
    case 8: return f(Width<8>());
    case 16: return f(Width<16>());
    case 32: return f(Width<32>());
    case 64: return f(Width<64>());
    default: return f(C);
  }
}
template <class T> [[gnu::noinline]] static void spread_rows(const T* from, i64 rows, i64 C, T* to) {
  by_width(C, [=](auto c) {
    for (i64 k = 0; k < rows; ++k)
      for (i64 i = 0; i < c; ++i) to[k * c + i] = from[k];
  });
}
template <class T> [[gnu::noinline]] static void spread_columns(const T* from, i64 rows, i64 C, T* to) {
  for (i64 k = 0; k < rows; ++k) copied(from, C, to + k * C);
}
template <class T> [[gnu::noinline]] static void sum_to_rows(const T* from, i64 rows, i64 C, T* to) {
  by_width(C, [=](auto c) mutable {
    for (i64 k = 0; k < rows; ++k, from += c) {
      T sum = 0;
      if constexpr (!is_known<decltype(c)>) {
        for (i64 i = 0; i < c; ++i) sum += from[i];
      } else if constexpr (c <= 8) {  // in halves
        T part[c];
        for (i64 i = 0; i < c; ++i) part[i] = from[i];
        for (i64 n = c / 2; n > 0; n /= 2)
          for (i64 i = 0; i < n; ++i) part[i] += part[i + n];
        sum = part[0];
      } else {
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < c; ++i) sum += from[i];
      }
      to[k] = sum;
    }
  });
}
template <class T> [[gnu::noinline]] static void amax_to_rows(const T* from, i64 rows, i64 C, T* to) {
  for (i64 k = 0; k < rows; ++k) {
    T most = -INFINITY;
    for (i64 i = 0; i < C; ++i) most = larger<T>(most, from[k * C + i]);
    to[k] = most;
  }
}
template <class T> [[gnu::noinline]] static void sum_to_columns(const T* from, i64 rows, i64 C, T* to) {
  by_width(C, [=](auto c) {
    T sums[64];
    for (i64 i = 0; i < c; ++i) sums[i] = to[i];
    for (i64 k = 0; k < rows; ++k)
      for (i64 i = 0; i < c; ++i) sums[i] += from[k * c + i];
    for (i64 i = 0; i < c; ++i) to[i] = sums[i];
  });
}
template <class T> [[gnu::noinline]] static void amax_to_columns(const T* from, i64 rows, i64 C, T* to) {
  for (i64 k = 0; k < rows; ++k)
    for (i64 i = 0; i < C; ++i) to[i] = larger<T>(to[i], from[k * C + i]);
}

// Codes of blockwise quantised state: an ascending table of 2^BITS values in [-1, 1]. A value's code is the number of
// midpoints below it. A table over the leading bits of the value is off by one at most; one comparison settles it.
template <int BITS> struct Codebook {
  static constexpr int N = 1 << BITS, HALF = 25 << 7;
  static constexpr u32 LOWEST = (127 - 24) << 7;  // magnitudes below 2^-24 share a cell
  float value[N], above[N];
  uint8_t cell[2 * HALF];
  explicit Codebook(const float* values) {
    for (int k = 0; k < N; ++k) value[k] = values[k];
    for (int k = 0; k + 1 < N; ++k) above[k] = (value[k] + value[k + 1]) / 2;
    above[N - 1] = INFINITY;
    for (int i = 0; i < 2 * HALF; ++i) {
      const u32 magnitude = (u32)(i % HALF);
      const bool negative = i >= HALF;
      // The cell's least value: a negative cell begins at its largest magnitude.
      float x = magnitude == 0 && !negative ? 0.0f : float_of((magnitude + LOWEST + (negative ? 1 : 0)) << 16);
      if (negative) x = -x;
      int k = 0;
      while (above[k] < x) ++k;
      cell[i] = (uint8_t)k;
    }
  }
  static inline int32_t place(float x) {
    const u32 b = bits_of(x);
    const int32_t m = (int32_t)((b & 0x7fffffffu) >> 16) - (int32_t)LOWEST;
    const int32_t inside = m < 0 ? 0 : m > HALF - 1 ? HALF - 1 : m;
    return inside + (int32_t)(b >> 31) * HALF;
  }
  inline int code(float x, int32_t place) const {
    const int k = cell[place];
    return k + (x > above[k]);
  }
  inline int code(float x, int32_t place, u32 random) const {  // one of the two values around x, on average x
    const int k = code(x, place);
    const int low = k - ((value[k] > x) & (k > 0));
    const int high = low + (low + 1 < N);
    const float rest = (x - value[low]) - (float)(random >> 8) * 0x1p-24f * (value[high] - value[low]);
    return low + ((rest > 0) & (high > low));
  }
};
template <int BITS>
static inline void decode(const Codebook<BITS>& book, const uint8_t* codes, float scale, i64 n, float* to) {
  float scaled[16];
  if (BITS == 8) {
    for (i64 j = 0; j < n; ++j) to[j] = book.value[codes[j]] * scale;
    return;
  }
  for (int k = 0; k < 16; ++k) scaled[k] = book.value[k & (Codebook<BITS>::N - 1)] * scale;
  for (i64 j = 0; j + 1 < n; j += 2) {
    const uint8_t two = codes[j >> 1];
    to[j] = scaled[two & 15];
    to[j + 1] = scaled[two >> 4];
  }
  if (n & 1) to[n - 1] = scaled[codes[n >> 1] & 15];
}
// The largest magnitude; NaN if there is one.
static inline float largest_of(const float* from, i64 n) {
  float largest = 0, odd = 0;
#pragma omp simd reduction(max : largest) reduction(+ : odd)
  for (i64 j = 0; j < n; ++j) {
    const float x = math::fabs(from[j]);
    largest = largest < x ? x : largest;
    odd += from[j] * 0.0f;
  }
  if (odd != odd)
    for (i64 j = 0; j < n; ++j) largest = from[j] != from[j] ? from[j] : largest;
  return largest;
}
template <int BITS, bool STOCHASTIC>
static inline void encode(const Codebook<BITS>& book, const float* from, i64 n, uint8_t* codes, float& scale, i64 index,
                          u32 seed) {
  const float largest = largest_of(from, n);
  scale = largest;
  // A table of 8 bits that begins with zero, through which an optimizer would divide: only zero gets it.
  const float least = BITS == 8 && book.value[0] == 0.0f ? book.value[1] : 0.0f;
  float share[256];
  int32_t place[256];
  u32 random[STOCHASTIC ? 256 : 1];
#pragma omp simd
  for (i64 j = 0; j < n; ++j) {
    const float x = from[j] / largest;
    share[j] = largest == 0 ? 0.0f : (x > 0) & (x < least) ? least : x;
    place[j] = Codebook<BITS>::place(share[j]);
    if (STOCHASTIC) random[j] = hashed((u32)(index + j), seed);
  }
  auto code = [&](i64 j) { return STOCHASTIC ? book.code(share[j], place[j], random[j]) : book.code(share[j], place[j]); };
  if (BITS == 8) {
    for (i64 j = 0; j < n; ++j) codes[j] = (uint8_t)code(j);
  } else {
    for (i64 j = 0; j + 1 < n; j += 2) codes[j >> 1] = (uint8_t)(code(j) | (code(j + 1) << 4));
    if (n & 1) codes[n >> 1] = (uint8_t)code(n - 1);
  }
}

// One tensor of the bucket, with what passes leave for each other.
struct Work {
  i64 B, R, C;            // batches, rows, columns; flat: 1, 1, entries
  i64 code_rows, code_columns;
  void* const* at;        // addresses of its tensors
  u32 seed;
  int threads;
  Buffer<double> own;      // scalars
  Buffer<double> partial;  // sums over the tensor, by thread
  Buffer<double> sums;     // sums over rows: by node, copy, batch and column
  Buffer<real> batch, column, row;
  i64 copies() const { return B >= threads ? 1 : threads; }
};

// Calls f(work, first unit, last unit, thread) so that threads get equal numbers of entries, each a connected piece.
template <class U, class F> static void share(Work* works, i64 count, int threads, U units, F f) {
  i64 total = 0;
  for (i64 t = 0; t < count; ++t) total += works[t].B * works[t].R * works[t].C;
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num(), all = omp_get_num_threads();
    const double low = (double)total * thread / all, high = (double)total * (thread + 1) / all;
    i64 before = 0;
    for (i64 t = 0; t < count && (double)before < high; ++t) {
      const i64 entries = works[t].B * works[t].R * works[t].C;
      if (entries > 0 && (double)(before + entries) > low) {
        const i64 n = units(works[t]);
        const double length = (double)entries / (double)n;
        const i64 first = low > before ? (i64)math::ceil((low - before) / length) : 0;
        const i64 last = high < before + entries ? least(n, (i64)math::ceil((high - before) / length)) : n;
        if (first < last) f(works[t], first, last, thread);
      }
      before += entries;
    }
  }
}
