// What a training step does between its matrix products, each in one pass over memory.
//
// Plain C++17 that the compiler vectorises, with a C interface; bitnet_core.kernels.cpu_training calls it, and says what is
// computed. Tensors are contiguous. Those marked low or high hold bfloat16 (as uint16_t) or float32.
// A result doesn't depend on the number of threads: each row is one thread's, and sums over rows are made of the sums
// of kRows rows each, in order.
//
// Shapes: N tokens, I input width, O output width, H heads, E head width; in attention B sequences, T positions, K heads
// of keys and values.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "exponential.h"

namespace {

inline float widen(float x) { return x; }
inline float widen(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// To the nearest, halves to even, as torch.
inline void put(float& to, float x) { to = x; }
inline void put(uint16_t& to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
inline float rounded(float x) {
  T to;
  put(to, x);
  return widen(to);
}

// To the nearest integer, halves to even; |x| < 2^22. NaN stays.
inline float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

// The code -1, 0 or 1 of w, where half is s / 2. NaN stays. The same as rounding w / s, halves to even: the next float
// above s / 2 divided by s is rounded to more than 1 / 2.
inline float ternary(float w, float half) { return std::fabs(w) <= half ? 0.0f : w != w ? w : std::copysign(1.0f, w); }

inline float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

constexpr int64_t kRows = 32;

// row(n) for every row, divided among the threads unless it is little work.
template <class Row>
void for_rows(int64_t rows, int64_t width, int64_t threads, Row row) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows * width > 8192)
  for (int64_t n = 0; n < rows; ++n) row(n);
}

template <class Low>
void ternarise(const float* weight, const float* scale, const float* share, int64_t outputs, int64_t inputs,
               int64_t threads, Low* out) {
  for_rows(outputs, inputs, threads, [=](int64_t o) {
    const float s = scale[o], half = s / 2;
    const float* w = weight + o * inputs;
    Low* to = out + o * inputs;
    if (!share) {
      for (int64_t i = 0; i < inputs; ++i) put(to[i], ternary(w[i], half) * s);
      return;
    }
    const float part = *share;
    for (int64_t i = 0; i < inputs; ++i) {  // as torch.lerp
      const float gap = ternary(w[i], half) * s - w[i];
      put(to[i], part < 0.5f ? w[i] + part * gap : w[i] + gap - gap * (1 - part));
    }
  });
}

template <class Low>
void ternary_gradients(const Low* grad, const float* weight, const float* scale, float range, float limit,
                       const float* share, int64_t outputs, int64_t inputs, int64_t threads, float* out,
                       float* log_scale) {
  const float rest = share ? 1 - *share : 0;  // of a gradient beyond the limit
  for_rows(outputs, inputs, threads, [=](int64_t o) {
    const float s = scale[o], half = s / 2, inverse = 1 / s, inside = range * s, most = limit * s;
    const float* w = weight + o * inputs;
    const Low* g = grad + o * inputs;
    float sum = 0;
    if (log_scale) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < inputs; ++i) {
        const float t = ternary(w[i], half);
        sum += widen(g[i]) * (std::fabs(w[i]) <= inside ? t - w[i] * inverse : t);
      }
      log_scale[o] = sum * s;
    }
    if (out)
      for (int64_t i = 0; i < inputs; ++i)
        out[o * inputs + i] = !(std::fabs(w[i]) > most) ? widen(g[i]) : rest > 0 ? rest * widen(g[i]) : 0.0f;
  });
}

template <class In, class Out>
void fake_quantise(const In* x, int64_t bits, int64_t tokens, int64_t inputs, int64_t threads, Out* out) {
  for_rows(tokens, inputs, threads, [=](int64_t n) {
    const In* from = x + n * inputs;
    Out* to = out + n * inputs;
    float scale, low = -127, high = 127;
    if (bits == 8) {
      float top = 0;
#pragma omp simd reduction(max : top)
      for (int64_t i = 0; i < inputs; ++i) top = std::max(top, std::fabs(widen(from[i])));
      scale = std::max(top, 1e-30f) / 127;
    } else {
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < inputs; ++i) total += std::fabs(widen(from[i]));
      scale = std::max(total / inputs, 1e-30f) / std::sqrt(7.0f);
      low = -8, high = 7;
    }
    for (int64_t i = 0; i < inputs; ++i) {
      const float u = widen(from[i]) / scale;  // clipped before rounding: the same, for whole bounds
      put(to[i], nearest(u < low ? low : u > high ? high : u) * scale);
    }
  });
}

template <class In>
void rms_norm(const In* x, const float* gain, float eps, int64_t tokens, int64_t width, int64_t threads, float* out,
              float* factor) {
  for_rows(tokens, width, threads, [=](int64_t n) {
    const In* from = x + n * width;
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += widen(from[i]) * widen(from[i]);
    const float f = 1 / std::sqrt(squares / width + eps);
    factor[n] = f;
    for (int64_t i = 0; i < width; ++i) out[n * width + i] = gain[i] * rounded<In>(widen(from[i]) * f);
  });
}

// gain_sums [N / kRows, rounded up; I] are of kRows tokens each.
template <class In>
void rms_norm_gradients(const float* grad, const In* x, const float* gain, const float* factor, int64_t tokens,
                        int64_t width, int64_t threads, In* out, float* gain_sums) {
  for_rows((tokens + kRows - 1) / kRows, kRows * width, threads, [=](int64_t block) {
    float* sums = gain_sums + block * width;
    std::fill(sums, sums + width, 0.0f);
    for (int64_t n = block * kRows; n < std::min(tokens, (block + 1) * kRows); ++n) {
      const In* from = x + n * width;
      const float* g = grad + n * width;
      const float f = factor[n];
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < width; ++i) {
        const float normed = rounded<In>(widen(from[i]) * f);
        sums[i] += g[i] * normed;
        dot += g[i] * gain[i] * normed;
      }
      dot /= width;
      for (int64_t i = 0; i < width; ++i) put(out[n * width + i], f * (g[i] * gain[i] - widen(from[i]) * f * dot));
    }
  });
}

template <class T>
void swiglu(const T* gate, const T* up, int64_t tokens, int64_t width, int64_t threads, T* out) {
  for_rows(tokens, width, threads, [=](int64_t n) {
    for (int64_t i = n * width; i < (n + 1) * width; ++i) {
      const float g = widen(gate[i]);
      put(out[i], rounded<T>(g * sigmoid(g)) * widen(up[i]));
    }
  });
}

template <class T>
void swiglu_gradients(const T* grad, const T* gate, const T* up, int64_t tokens, int64_t width, int64_t threads,
                      T* gate_grad, T* up_grad) {
  for_rows(tokens, width, threads, [=](int64_t n) {
    for (int64_t i = n * width; i < (n + 1) * width; ++i) {
      const float g = widen(gate[i]), s = sigmoid(g), from = widen(grad[i]);
      put(up_grad[i], from * rounded<T>(g * s));
      put(gate_grad[i], rounded<T>(from * widen(up[i])) * s * (1 + g * (1 - s)));
    }
  });
}

// Element e of each head turns with element e + E / 2, as Llama's rotate_half. sign -1 turns back.
template <class T>
void rotate(const T* x, const float* cos, const float* sin, float sign, int64_t tokens, int64_t angles, int64_t heads,
            int64_t width, int64_t threads, T* out) {
  for_rows(tokens, heads * width, threads, [=](int64_t n) {
    const int64_t half = width / 2;
    const float *c = cos + n % angles * width, *s = sin + n % angles * width;
    for (int64_t h = n * heads; h < (n + 1) * heads; ++h) {
      const T* from = x + h * width;
      T* to = out + h * width;
      for (int64_t e = 0; e < half; ++e) {
        const float a = widen(from[e]), b = widen(from[e + half]);
        put(to[e], a * c[e] - sign * b * (sign > 0 ? s[e] : s[e + half]));
        put(to[e + half], b * c[e + half] + sign * a * (sign > 0 ? s[e + half] : s[e]));
      }
    }
  });
}

// The largest of each row, and the sum of e^(x - largest); -inf and 0 where all are -inf.
template <class T>
void softmax_parts(const T* x, int64_t rows, int64_t width, int64_t threads, float* largest, float* total) {
  for_rows(rows, width, threads, [=](int64_t r) {
    const T* from = x + r * width;
    float top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < width; ++i) top = std::max(top, widen(from[i]));
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += widen(from[i]) == -INFINITY ? 0.0f : exponential(widen(from[i]) - top);
    largest[r] = top;
    total[r] = sum;
  });
}

// x becomes factor * e^(x - largest); 0 of -inf.
template <class T>
void exponentiate(T* x, const float* largest, const float* factor, int64_t rows, int64_t width, int64_t threads) {
  for_rows(rows, width, threads, [=](int64_t r) {
    T* row = x + r * width;
    const float top = largest[r], f = factor[r];
    for (int64_t i = 0; i < width; ++i)
      put(row[i], widen(row[i]) == -INFINITY ? 0.0f : f * exponential(widen(row[i]) - top));
  });
}

// --- attention: products of floats in registers, a block of queries at a time

constexpr int kLanes = 16;    // floats that are computed side by side
constexpr int kQueries = 32;  // of a block
using Floats = float __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

int64_t lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// c [R, 16 V] = a b, or c + a b. a's element (r, k) is a[r * row + k * column]; b's row k starts at b + k * stride.
template <int R, int V>
inline void tile(const float* a, int64_t row, int64_t column, const float* b, int64_t stride, int64_t depth, float* c,
                 int64_t c_stride, bool add) {
  Floats sum[R][V] = {};
  for (int64_t k = 0; k < depth; ++k, a += column, b += stride)
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] += a[r * row] * reinterpret_cast<const Floats*>(b)[v];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) {
      auto& to = reinterpret_cast<Floats*>(c + r * c_stride)[v];
      to = add ? to + sum[r][v] : sum[r][v];
    }
}

template <int V>
void column_of_tiles(const float* a, int64_t row, int64_t column, const float* b, int64_t stride, int64_t rows,
                     int64_t depth, float* c, int64_t c_stride, bool add) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) tile<4, V>(a + r * row, row, column, b, stride, depth, c + r * c_stride, c_stride, add);
  for (; r < rows; ++r) tile<1, V>(a + r * row, row, column, b, stride, depth, c + r * c_stride, c_stride, add);
}

// The whole of c [rows, columns], a multiple of kLanes.
void product(const float* a, int64_t row, int64_t column, const float* b, int64_t stride, int64_t rows, int64_t depth,
             int64_t columns, float* c, int64_t c_stride, bool add = false) {
  int64_t n = 0;
  for (; n + 4 * kLanes <= columns; n += 4 * kLanes)
    column_of_tiles<4>(a, row, column, b + n, stride, rows, depth, c + n, c_stride, add);
  for (; n + 2 * kLanes <= columns; n += 2 * kLanes)
    column_of_tiles<2>(a, row, column, b + n, stride, rows, depth, c + n, c_stride, add);
  for (; n < columns; n += kLanes)
    column_of_tiles<1>(a, row, column, b + n, stride, rows, depth, c + n, c_stride, add);
}

struct Attention {
  int64_t batch, length, heads, kv_heads, width;
  float scale;
  const uint8_t* mask;  // [B, T, T], whether a position (second axis) sees another; null: itself and those before it
  int64_t padded() const { return lanes(width); }
  int64_t columns() const { return lanes(length); }
  bool sees(int64_t b, int64_t t, int64_t s) const { return mask ? mask[(b * length + t) * length + s] : s <= t; }
};

// One head of one sequence, out of [B, T, heads, E].
template <class T>
struct Head {
  T* start;
  int64_t stride;
  Head(T* x, const Attention& a, int64_t heads, int64_t b, int64_t h)
      : start(x + (b * a.length * heads + h) * a.width), stride(heads * a.width) {}
  T* at(int64_t t) const { return start + t * stride; }
};

// [T, E] as floats, rows padded with zeros.
template <class T>
void rows_of(const Head<const T>& x, const Attention& a, std::vector<float>& out) {
  for (int64_t t = 0; t < a.length; ++t)
    for (int64_t e = 0; e < a.width; ++e) out[t * a.padded() + e] = widen(x.at(t)[e]);
}

// [E, T] as floats, rows padded with zeros.
template <class T>
void columns_of(const Head<const T>& x, const Attention& a, std::vector<float>& out) {
  for (int64_t t = 0; t < a.length; ++t)
    for (int64_t e = 0; e < a.width; ++e) out[e * a.columns() + t] = widen(x.at(t)[e]);
}

// How many positions, from the first one on, the queries of a block may see.
int64_t seen_by(const Attention& a, int64_t b, int64_t first, int64_t count) {
  if (!a.mask) return first + count;
  for (int64_t s = a.length; s > 0; --s)
    for (int64_t t = first; t < first + count; ++t)
      if (a.sees(b, t, s - 1)) return s;
  return 0;
}

// A row of scores without those that are not seen, which become -inf; returns the largest.
float masked_scores(const Attention& a, int64_t b, int64_t t, int64_t seen, float* row) {
  float top = -INFINITY;
  if (a.mask) {
    const uint8_t* sees = a.mask + (b * a.length + t) * a.length;
#pragma omp simd reduction(max : top)
    for (int64_t s = 0; s < seen; ++s) {
      row[s] = sees[s] ? row[s] * a.scale : -INFINITY;
      top = std::max(top, row[s]);
    }
  } else {
    const int64_t limit = std::min(seen, t + 1);
#pragma omp simd reduction(max : top)
    for (int64_t s = 0; s < limit; ++s) {
      row[s] *= a.scale;
      top = std::max(top, row[s]);
    }
    std::fill(row + limit, row + seen, -INFINITY);
  }
  std::fill(row + seen, row + lanes(seen), -INFINITY);
  return top;
}

// e^(row - log_sum), 0 for -inf; returns the sum.
float exponentials(float* row, int64_t count, float log_sum) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t s = 0; s < count; ++s) {
    row[s] = row[s] == -INFINITY ? 0.0f : exponential(row[s] - log_sum);
    total += row[s];
  }
  return total;
}

template <class T>
void attend(const Attention& a, const T* query, const T* key, const T* value, int64_t threads, T* out, float* log_sums) {
  const int64_t width = a.padded(), columns = a.columns(), group = a.heads / a.kv_heads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> q(a.length * width), k(a.width * columns), v(a.length * width), p(kQueries * columns),
        mixed(kQueries * width);
#pragma omp for schedule(static)
    for (int64_t job = 0; job < a.batch * a.heads; ++job) {
      const int64_t b = job / a.heads, h = job % a.heads;
      rows_of(Head<const T>(query, a, a.heads, b, h), a, q);
      columns_of(Head<const T>(key, a, a.kv_heads, b, h / group), a, k);
      rows_of(Head<const T>(value, a, a.kv_heads, b, h / group), a, v);
      const Head<T> to(out, a, a.heads, b, h);
      for (int64_t first = 0; first < a.length; first += kQueries) {
        const int64_t count = std::min<int64_t>(kQueries, a.length - first), seen = seen_by(a, b, first, count);
        product(q.data() + first * width, width, 1, k.data(), columns, count, a.width, lanes(seen), p.data(), columns);
        float total[kQueries];
        for (int64_t t = 0; t < count; ++t) {
          float* row = p.data() + t * columns;
          const float top = masked_scores(a, b, first + t, seen, row);
          total[t] = exponentials(row, lanes(seen), top);
          log_sums[job * a.length + first + t] = top + std::log(total[t]);
        }
        product(p.data(), columns, 1, v.data(), width, count, seen, width, mixed.data(), width);
        for (int64_t t = 0; t < count; ++t) {
          const float factor = total[t] == 0 ? 0 : 1 / total[t];  // NaN stays
          for (int64_t e = 0; e < a.width; ++e) put(to.at(first + t)[e], mixed[t * width + e] * factor);
        }
      }
    }
  }
}

// key_grad and value_grad [B, T, H, E]: of each query head by itself.
template <class T>
void attend_gradients(const Attention& a, const T* grad, const T* query, const T* key, const T* value, const T* out,
                      const float* log_sums, int64_t threads, T* query_grad, float* key_grad, float* value_grad) {
  const int64_t width = a.padded(), columns = a.columns(), group = a.heads / a.kv_heads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t flat = a.length * width, upright = a.width * columns;
    std::vector<float> q(flat), g(flat), k(flat), k_columns(upright), v_columns(upright), p(kQueries * columns),
        s(kQueries * columns), q_grad(kQueries * width), k_grad(flat), v_grad(flat);
#pragma omp for schedule(static)
    for (int64_t job = 0; job < a.batch * a.heads; ++job) {
      const int64_t b = job / a.heads, h = job % a.heads;
      const Head<const T> keys(key, a, a.kv_heads, b, h / group), values(value, a, a.kv_heads, b, h / group);
      const Head<const T> outs(out, a, a.heads, b, h);
      rows_of(Head<const T>(query, a, a.heads, b, h), a, q);
      rows_of(Head<const T>(grad, a, a.heads, b, h), a, g);
      rows_of(keys, a, k);
      columns_of(keys, a, k_columns);
      columns_of(values, a, v_columns);
      std::fill(k_grad.begin(), k_grad.end(), 0.0f);
      std::fill(v_grad.begin(), v_grad.end(), 0.0f);
      const Head<T> to(query_grad, a, a.heads, b, h);
      for (int64_t first = 0; first < a.length; first += kQueries) {
        const int64_t count = std::min<int64_t>(kQueries, a.length - first), seen = seen_by(a, b, first, count);
        const float *block = q.data() + first * width, *grads = g.data() + first * width;
        product(block, width, 1, k_columns.data(), columns, count, a.width, lanes(seen), p.data(), columns);
        product(grads, width, 1, v_columns.data(), columns, count, a.width, lanes(seen), s.data(), columns);
        for (int64_t t = 0; t < count; ++t) {
          float *probability = p.data() + t * columns, *score = s.data() + t * columns, dot = 0;
          masked_scores(a, b, first + t, seen, probability);
          exponentials(probability, lanes(seen), log_sums[job * a.length + first + t]);
#pragma omp simd reduction(+ : dot)
          for (int64_t e = 0; e < a.width; ++e) dot += grads[t * width + e] * widen(outs.at(first + t)[e]);
          for (int64_t i = 0; i < lanes(seen); ++i) score[i] = probability[i] * (score[i] - dot) * a.scale;
        }
        product(s.data(), columns, 1, k.data(), width, count, seen, width, q_grad.data(), width);
        product(s.data(), 1, columns, block, width, seen, count, width, k_grad.data(), width, true);
        product(p.data(), 1, columns, grads, width, seen, count, width, v_grad.data(), width, true);
        for (int64_t t = 0; t < count; ++t)
          for (int64_t e = 0; e < a.width; ++e) put(to.at(first + t)[e], q_grad[t * width + e]);
      }
      const Head<float> key_to(key_grad, a, a.heads, b, h), value_to(value_grad, a, a.heads, b, h);
      for (int64_t t = 0; t < a.length; ++t) {
        std::copy_n(k_grad.data() + t * width, a.width, key_to.at(t));
        std::copy_n(v_grad.data() + t * width, a.width, value_to.at(t));
      }
    }
  }
}

}  // namespace

// For both kinds of a low or high tensor; `low` says which.
#define EITHER(low, call)              \
  if (low) {                           \
    using T = uint16_t;                \
    call;                              \
  } else {                             \
    using T = float;                   \
    call;                              \
  }
#define AS(type, pointer) static_cast<type*>(pointer)

extern "C" {

// 0: everything runs on one thread.
int64_t bitnet_has_openmp() {
#ifdef _OPENMP
  return 1;
#else
  return 0;
#endif
}

void bitnet_ternarise(const float* weight, const float* scale, const float* share, int64_t outputs, int64_t inputs,
                      int64_t threads, int64_t low, void* out) {
  EITHER(low, ternarise(weight, scale, share, outputs, inputs, threads, AS(T, out)))
}

void bitnet_ternary_gradients(void* grad, const float* weight, const float* scale, float range, float limit,
                              const float* share, int64_t outputs, int64_t inputs, int64_t threads, int64_t low,
                              float* out, float* log_scale) {
  EITHER(low, ternary_gradients(AS(T, grad), weight, scale, range, limit, share, outputs, inputs, threads, out,
                                log_scale))
}

void bitnet_fake_quantise(void* x, int64_t bits, int64_t tokens, int64_t inputs, int64_t threads, int64_t low,
                          int64_t low_out, void* out) {
  if (low_out) {
    EITHER(low, fake_quantise(AS(T, x), bits, tokens, inputs, threads, AS(uint16_t, out)))
  } else {
    EITHER(low, fake_quantise(AS(T, x), bits, tokens, inputs, threads, AS(float, out)))
  }
}

void bitnet_rms_norm(void* x, const float* gain, float eps, int64_t tokens, int64_t width, int64_t threads, int64_t low,
                     float* out, float* factor) {
  EITHER(low, rms_norm(AS(T, x), gain, eps, tokens, width, threads, out, factor))
}

void bitnet_rms_norm_gradients(const float* grad, void* x, const float* gain, const float* factor, int64_t tokens,
                               int64_t width, int64_t threads, int64_t low, void* out, float* gain_sums) {
  EITHER(low, rms_norm_gradients(grad, AS(T, x), gain, factor, tokens, width, threads, AS(T, out), gain_sums))
}

void bitnet_swiglu(void* gate, void* up, int64_t tokens, int64_t width, int64_t threads, int64_t low, void* out) {
  EITHER(low, swiglu(AS(T, gate), AS(T, up), tokens, width, threads, AS(T, out)))
}

void bitnet_swiglu_gradients(void* grad, void* gate, void* up, int64_t tokens, int64_t width, int64_t threads,
                             int64_t low, void* gate_grad, void* up_grad) {
  EITHER(low, swiglu_gradients(AS(T, grad), AS(T, gate), AS(T, up), tokens, width, threads, AS(T, gate_grad),
                               AS(T, up_grad)))
}

void bitnet_rotate(void* x, const float* cos, const float* sin, float sign, int64_t tokens, int64_t angles,
                   int64_t heads, int64_t width, int64_t threads, int64_t low, void* out) {
  EITHER(low, rotate(AS(T, x), cos, sin, sign, tokens, angles, heads, width, threads, AS(T, out)))
}

void bitnet_softmax_parts(void* x, int64_t rows, int64_t width, int64_t threads, int64_t low, float* largest,
                          float* total) {
  EITHER(low, softmax_parts(AS(T, x), rows, width, threads, largest, total))
}

void bitnet_exponentiate(void* x, const float* largest, const float* factor, int64_t rows, int64_t width,
                         int64_t threads, int64_t low) {
  EITHER(low, exponentiate(AS(T, x), largest, factor, rows, width, threads))
}

void bitnet_attend(void* query, void* key, void* value, const uint8_t* mask, float scale, int64_t batch, int64_t length,
                   int64_t heads, int64_t kv_heads, int64_t width, int64_t threads, int64_t low, void* out,
                   float* log_sums) {
  const Attention a{batch, length, heads, kv_heads, width, scale, mask};
  EITHER(low, attend(a, AS(T, query), AS(T, key), AS(T, value), threads, AS(T, out), log_sums))
}

void bitnet_attend_gradients(void* grad, void* query, void* key, void* value, void* out, const float* log_sums,
                             const uint8_t* mask, float scale, int64_t batch, int64_t length, int64_t heads,
                             int64_t kv_heads, int64_t width, int64_t threads, int64_t low, void* query_grad,
                             float* key_grad, float* value_grad) {
  const Attention a{batch, length, heads, kv_heads, width, scale, mask};
  EITHER(low, attend_gradients(a, AS(T, grad), AS(T, query), AS(T, key), AS(T, value), AS(T, out), log_sums, threads,
                               AS(T, query_grad), key_grad, value_grad))
}
}
