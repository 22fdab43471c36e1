// The student's forward pass on a CPU from two-bit weights: all layers for a chunk of tokens in one call.
//
// Plain C++17 with GCC's vector types and a C interface (no torch headers: it compiles in seconds).
// bitnet_core.kernels.compile compiles it once for each instruction set and loads the best that the machine has:
// AVX-512 VNNI, AVX2, or whatever the compiler makes of the portable path.
//
// Shapes: T tokens of the chunk, I inputs, O outputs, D residual width, F inner width, E head width, S positions.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif
#include "../../kernels/exponential.h"
#include "ternary_dot.h"

extern "C" {

struct Linear {
  int64_t inputs, outputs;
  const uint8_t* codes;    // [O, ceil(I / 4)]
  const float* row_scale;  // [O]
  const float* bias;       // [O] or null
};

struct Layer {
  Linear q, k, v, o, gate, up, down;
  const float *input_norm, *post_norm;            // [D]
  const float *q_norm, *k_norm;                   // [E] or null
  const float *attn_sub_norm, *ffn_sub_norm;      // [heads E], [F] or null
  float* keys;                                    // [kv_heads, S / 16, E, 16]: sixteen positions side by side
  float* values;                                  // [kv_heads, S, E rounded up to 64]
};

struct Model {
  int64_t layers, hidden, inner, heads, kv_heads, head_width, context;  // context: S, a multiple of 16
  int64_t bits, output_bits;                      // of activations; output_bits before o and down
  int64_t hadamard, squared_relu;                 // squared_relu: on the gate, instead of SiLU
  float eps;
  const float *final_norm, *cos, *sin;            // [D], [S, E / 2]
  const Layer* layer;
};

struct Head {
  int64_t vocab, width;    // width: D rounded up to 16, the rest zeros
  const int8_t* int8;      // [V, width] with row_scale, or null
  const float* row_scale;  // [V]
  const uint16_t* bf16;    // [V, width], or null
};
}

namespace {

constexpr int kLanes = 16;   // floats that are computed side by side
constexpr int64_t kPanel = 256 << 10;  // bytes of codes that every token meets before the next are read
constexpr int kValues = 64;  // a cached value's width is a multiple of it

using Floats = float __attribute__((vector_size(64), aligned(4), may_alias));
using Floats4 = float __attribute__((vector_size(16)));
using Ints4 = int32_t __attribute__((vector_size(16)));
using Ints = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Bytes16 = int8_t __attribute__((vector_size(16), aligned(1), may_alias));
using Halves16 = uint16_t __attribute__((vector_size(32), aligned(2), may_alias));

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Where the threads of a team wait for one another, some hundred times a token: they spin. A thread that sleeps or
// yields loses its core to whatever else runs on this machine and waits for it again, while the others wait for it:
// OpenMP's barrier was thirteen times slower beside one other busy program. Only where the system has put two of the
// team on one core, which it does on a busy machine, must one let the other run.
class Barrier {
 public:
  explicit Barrier(int64_t most) : cores_(most) {}

  void wait(int index, int team) {
    if (team == 1) return;
    const int round = round_.load(std::memory_order_acquire), core = core_now();
    cores_[index].number.store(core, std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == team) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 1; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins % kPatience == 0 && shared(index, team)) std::this_thread::yield();
#ifdef __SSE2__
      __builtin_ia32_pause();
#endif
    }
  }

 private:
  static constexpr int kPatience = 256;
  struct alignas(64) Core {
    std::atomic<int> number{-1};
  };

  static int core_now() {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
  }

  bool shared(int index, int team) const {
    const int mine = core_now();
    for (int i = 0; i < team; ++i)
      if (i != index && cores_[i].number.load(std::memory_order_relaxed) == mine) return true;
    return false;
  }

  std::vector<Core> cores_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

// One thread of a team, and its part of `count` pieces of work, in whole units.
struct Worker {
  const int index, team;
  Barrier& barrier;

  int64_t begin(int64_t count, int64_t unit = 1) const { return part(count, unit, index); }
  int64_t end(int64_t count, int64_t unit = 1) const { return part(count, unit, index + 1); }
  void wait() const { barrier.wait(index, team); }

 private:
  int64_t part(int64_t count, int64_t unit, int64_t i) const {
    return std::min(count, (count + unit - 1) / unit * i / team * unit);
  }
};

template <class Work>
void in_parallel(int64_t threads, Work work) {
  Barrier barrier(threads);
#ifdef _OPENMP
  // More threads than cores would spin while those that they wait for have none.
#pragma omp parallel num_threads(std::min(int(threads), omp_get_num_procs()))
  work(Worker{omp_get_thread_num(), omp_get_num_threads(), barrier});
#else
  (void)threads;
  work(Worker{0, 1, barrier});
#endif
}

// Activations of T tokens as integers.
struct Quantised {
  int64_t width;                // I rounded up to a block
  std::vector<int8_t> memory;
  int8_t* planes;               // [T, width], at a cache line's start: unaligned loads halve the speed
  std::vector<int32_t> sums;    // [T], of the integers
  std::vector<float> scales;    // [T]
  Quantised(int64_t tokens, int64_t inputs)
      : width(round_up(inputs, kBlock)), memory(tokens * width + 63),
        planes(reinterpret_cast<int8_t*>(round_up(reinterpret_cast<intptr_t>(memory.data()), 64))), sums(tokens),
        scales(tokens) {}
};

// To the nearest integer, halves to even, as torch.round; |x| < 2^22.
inline int32_t nearest(float x) {
  float shifted = x + 12582912.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  return bits - 0x4B400000;
}

// bitnet_core.ternary.activation_quantiser.activation_codes of one token [I]: 8 bits by its maximum, 4 bits by its mean.
void quantise(const float* x, int64_t inputs, int64_t bits, Quantised& out, int64_t token, int8_t* codes) {
  float scale, low = -127, high = 127;
  if (bits == 8) {
    float top = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < inputs; ++i) top = std::max(top, std::fabs(x[i]));
    scale = std::max(top, 1e-30f) / 127;
  } else {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < inputs; ++i) total += std::fabs(x[i]);
    scale = std::max(total / inputs, 1e-30f) / std::sqrt(7.0f);
    low = -8, high = 7;
  }
  int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < inputs; ++i) {
    // Clipped before rounding: the same, for whole bounds.
    int32_t code = nearest(std::min(std::max(x[i] / scale, low), high));
    codes[i] = int8_t(code);
    sum += code;
  }
  std::memset(codes + inputs, 0, out.width - inputs);
  int8_t* planes = out.planes + token * out.width;
  for (int64_t b = 0; b < out.width; b += kBlock)
    for (int j = 0; j < kPlane; ++j) {
      uint32_t four;
      std::memcpy(&four, codes + b + 4 * j, 4);
      planes[b + j] = int8_t(four);
      planes[b + kPlane + j] = int8_t(four >> 8);
      planes[b + 2 * kPlane + j] = int8_t(four >> 16);
      planes[b + 3 * kPlane + j] = int8_t(four >> 24);
    }
  out.sums[token] = sum;
  out.scales[token] = scale;
}

// Four values, of which the first `count` are there.
inline Floats4 four(const float* values, int64_t count) {
  Floats4 out = {};
  if (count == 4) std::memcpy(&out, values, sizeof(out));
  else std::memcpy(&out, values, count * sizeof(float));
  return out;
}

// y [T, O], of rows `stride` apart: (integers * token's scale) * row's scale + bias, or that added to what is there; of the
// worker's rows. They are taken in panels that stay in the second cache, while four tokens at a time stay in the first.
template <bool kAdd = false>
void linear(const Linear& l, const Quantised& x, int64_t tokens, const Worker& worker, float* y, int64_t stride) {
  const int64_t bytes = (l.inputs + 3) / 4, end = worker.end(l.outputs, kRows);
  const int64_t panel = std::max<int64_t>(kPanel / bytes / kRows, 1) * kRows;
  std::vector<uint8_t> padded;  // where the last rows are fewer than a tile
  int32_t sums[kTokens][kRows];
  for (int64_t first = worker.begin(l.outputs, kRows); first < end; first += panel)
    for (int64_t t = 0, count; t < tokens; t += count) {
      count = t + kTokens <= tokens ? kTokens : 1;
      const int8_t* planes = x.planes + t * x.width;
      for (int64_t o = first; o < std::min(end, first + panel); o += kRows) {
        const int64_t rows = std::min<int64_t>(kRows, end - o);
        const uint8_t* codes = l.codes + o * bytes;
        if (rows < kRows) {
          padded.resize(kRows * bytes);
          std::memcpy(padded.data(), codes, rows * bytes);
          codes = padded.data();
        }
        if (count == kTokens) tile(codes, bytes, planes, x.width, sums);
        else one_token(codes, bytes, planes, sums[0]);
        const Floats4 scale = four(l.row_scale + o, rows), bias = l.bias ? four(l.bias + o, rows) : Floats4{};
        for (int64_t n = 0; n < count; ++n) {
          Ints4 sum;
          std::memcpy(&sum, sums[n], sizeof(sum));
          float* out = y + (t + n) * stride + o;
          Floats4 value = __builtin_convertvector(sum - x.sums[t + n], Floats4) * x.scales[t + n] * scale;
          if (l.bias) value += bias;  // not always: -0 + 0 is 0
          if (kAdd) value += four(out, rows);
          if (rows == kRows) std::memcpy(out, &value, sizeof(value));
          else std::memcpy(out, &value, rows * sizeof(float));
        }
      }
    }
}

void rms_norm(const float* x, const float* gain, int64_t width, float eps, float* out) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += x[i] * x[i];
  const float factor = 1 / std::sqrt(squares / width + eps);
  for (int64_t i = 0; i < width; ++i) out[i] = gain[i] * (x[i] * factor);
}

// In place, in blocks of the largest power of two that divides the width (bitnet_core.ternary.hadamard).
void hadamard(float* x, int64_t width) {
  const int64_t block = width & -width;
  for (int64_t half = 1; half < block; half *= 2)
    for (int64_t start = 0; start < width; start += 2 * half)
      for (int64_t i = start; i < start + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b, x[i + half] = a - b;
      }
  const float factor = 1 / std::sqrt(float(block));
  for (int64_t i = 0; i < width; ++i) x[i] *= factor;
}

// rotate_half, as Llama's: element i turns with element i + E / 2.
void rotate(float* x, const float* cos, const float* sin, int64_t width) {
  for (int64_t i = 0; i < width / 2; ++i) {
    const float a = x[i], b = x[i + width / 2];
    x[i] = a * cos[i] - b * sin[i];
    x[i + width / 2] = b * cos[i] + a * sin[i];
  }
}

// One chunk of tokens on its way through the layers.
struct Chunk {
  const Model& m;
  float* x;           // [T, D], the residual stream
  int64_t tokens, position;
  int64_t queries, keys, value_width;
  Quantised narrow, heads, wide;  // inputs of q k v gate up; of o; of down
  std::vector<float> qkv, mixed, gate, up;

  Chunk(const Model& model, float* residual, int64_t count, int64_t start)
      : m(model), x(residual), tokens(count), position(start), queries(m.heads * m.head_width),
        keys(m.kv_heads * m.head_width), value_width(round_up(m.head_width, kValues)), narrow(count, m.hidden),
        heads(count, queries), wide(count, m.inner), qkv(count * (queries + 2 * keys)), mixed(count * queries),
        gate(count * m.inner), up(count * m.inner) {}

  // A thread's own memory.
  struct Own {
    std::vector<float> row, scores;
    std::vector<int8_t> codes;
    explicit Own(const Chunk& c)
        : row(std::max({c.m.hidden, c.queries, c.m.inner})), scores(4 * round_up(c.position + c.tokens, kLanes)),
          codes(round_up(int64_t(row.size()), kBlock)) {}
  };

  void run(const Worker& worker) {
    Own own(*this);
    for (int64_t i = 0; i < m.layers; ++i) {
      const Layer& layer = m.layer[i];
      norm_and_quantise(layer.input_norm, worker, own);
      project(layer, worker);
      place(layer, worker);
      attend(layer, worker, own);
      quantise_output(mixed.data(), queries, layer.attn_sub_norm, heads, worker, own);
      add(layer.o, heads, worker);
      norm_and_quantise(layer.post_norm, worker, own);
      gate_and_up(layer, worker);
      quantise_output(gate.data(), m.inner, layer.ffn_sub_norm, wide, worker, own);
      add(layer.down, wide, worker);
    }
    for (int64_t t = worker.begin(tokens); t < worker.end(tokens); ++t)
      rms_norm(x + t * m.hidden, m.final_norm, m.hidden, m.eps, x + t * m.hidden);
  }

  void norm_and_quantise(const float* gain, const Worker& worker, Own& own) {
    for (int64_t t = worker.begin(tokens); t < worker.end(tokens); ++t) {
      rms_norm(x + t * m.hidden, gain, m.hidden, m.eps, own.row.data());
      quantise(own.row.data(), m.hidden, m.bits, narrow, t, own.codes.data());
    }
    worker.wait();
  }

  void quantise_output(float* values, int64_t width, const float* gain, Quantised& out, const Worker& worker, Own& own) {
    for (int64_t t = worker.begin(tokens); t < worker.end(tokens); ++t) {
      float* row = values + t * width;
      if (gain) rms_norm(row, gain, width, m.eps, row);
      if (m.hadamard) hadamard(row, width);
      quantise(row, width, m.output_bits, out, t, own.codes.data());
    }
    worker.wait();
  }

  void project(const Layer& layer, const Worker& worker) {
    const int64_t stride = queries + 2 * keys;
    linear(layer.q, narrow, tokens, worker, qkv.data(), stride);
    linear(layer.k, narrow, tokens, worker, qkv.data() + queries, stride);
    linear(layer.v, narrow, tokens, worker, qkv.data() + queries + keys, stride);
    worker.wait();
  }

  // Norms and turns queries and keys, and puts keys and values where they stay.
  void place(const Layer& layer, const Worker& worker) {
    const int64_t each = m.heads + 2 * m.kv_heads, width = m.head_width, count = tokens * each;
    for (int64_t i = worker.begin(count); i < worker.end(count); ++i) {
      const int64_t t = i / each, head = i % each, kv = (head - m.heads) % m.kv_heads, s = position + t;
      float* values = qkv.data() + i * width;
      if (head >= m.heads + m.kv_heads) {
        std::copy(values, values + width, layer.values + (kv * m.context + s) * value_width);
        continue;
      }
      const float* gain = head < m.heads ? layer.q_norm : layer.k_norm;
      if (gain) rms_norm(values, gain, width, m.eps, values);
      rotate(values, m.cos + s * width / 2, m.sin + s * width / 2, width);
      if (head < m.heads) continue;
      float* key = layer.keys + (kv * m.context + s / kLanes * kLanes) * width + s % kLanes;
      for (int64_t e = 0; e < width; ++e) key[e * kLanes] = values[e];
    }
    worker.wait();
  }

  // Up to four queries of one key/value head at a time: what they read of the cache they share.
  void attend(const Layer& layer, const Worker& worker, Own& own) {
    const int64_t group = m.heads / m.kv_heads, each = tokens * group, blocks = (each + 3) / 4;
    for (int64_t i = worker.index; i < m.kv_heads * blocks; i += worker.team) {
      const int64_t kv = i / blocks, first = i % blocks * 4, count = std::min<int64_t>(4, each - first);
      const auto at = [&](int64_t n) {  // the query's token and head
        return std::pair<int64_t, int64_t>{(first + n) / group, kv * group + (first + n) % group};
      };
      if (count == 4) attend_with<4>(layer, kv, at, own);
      else if (count == 3) attend_with<3>(layer, kv, at, own);
      else if (count == 2) attend_with<2>(layer, kv, at, own);
      else attend_with<1>(layer, kv, at, own);
    }
    worker.wait();
  }

  template <int N, class At>
  void attend_with(const Layer& layer, int64_t kv, At at, Own& own) {
    constexpr int kChains = N == 1 ? 4 : 2;  // sums that don't wait for one another
    constexpr int kParts = kValues / kLanes;
    const int64_t width = m.head_width, seen = position + at(N - 1).first + 1, row = round_up(seen, kLanes);
    const float* query[N];
    for (int n = 0; n < N; ++n) query[n] = qkv.data() + at(n).first * (queries + 2 * keys) + at(n).second * width;
    for (int64_t s = 0; s < seen; s += kLanes) {
      const auto* key = reinterpret_cast<const Floats*>(layer.keys + (kv * m.context + s) * width);
      Floats sum[kChains][N] = {};
      int64_t e = 0;
      for (; e + kChains <= width; e += kChains)
        for (int c = 0; c < kChains; ++c) {
          __builtin_prefetch(reinterpret_cast<const char*>(key + e + c) + kAhead);
          for (int n = 0; n < N; ++n) sum[c][n] += query[n][e + c] * key[e + c];
        }
      for (; e < width; ++e)
        for (int n = 0; n < N; ++n) sum[0][n] += query[n][e] * key[e];
      for (int n = 0; n < N; ++n) {
        for (int c = 1; c < kChains; ++c) sum[0][n] += sum[c][n];
        *reinterpret_cast<Floats*>(own.scores.data() + n * row + s) = sum[0][n];
      }
    }
    float total[N];
    for (int n = 0; n < N; ++n) total[n] = softmax(own.scores.data() + n * row, position + at(n).first + 1, row);
    for (int64_t e = 0; e < width; e += kValues) {
      Floats sum[N][kParts] = {};
      const float* value = layer.values + kv * m.context * value_width + e;
      for (int64_t s = 0; s < seen; ++s, value += value_width)
        for (int part = 0; part < kParts; ++part) {
          __builtin_prefetch(reinterpret_cast<const char*>(value + part * kLanes) + kAhead);
          for (int n = 0; n < N; ++n)
            sum[n][part] += own.scores[n * row + s] * reinterpret_cast<const Floats*>(value)[part];
        }
      for (int n = 0; n < N; ++n) {
        for (Floats& part : sum[n]) part *= 1 / total[n];
        float* to = mixed.data() + at(n).first * queries + at(n).second * width + e;
        std::memcpy(to, sum[n], sizeof(float) * std::min<int64_t>(kValues, width - e));
      }
    }
  }

  // Scores to e^(score - largest), zero from `seen` on; returns their sum.
  float softmax(float* scores, int64_t seen, int64_t row) const {
    const float scale = 1 / std::sqrt(float(m.head_width));
    float top = scores[0];
#pragma omp simd reduction(max : top)
    for (int64_t s = 0; s < seen; ++s) top = std::max(top, scores[s]);
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t s = 0; s < seen; ++s) {
      scores[s] = exponential((scores[s] - top) * scale);
      total += scores[s];
    }
    std::fill(scores + seen, scores + row, 0.0f);
    return total;
  }

  void gate_and_up(const Layer& layer, const Worker& worker) {
    const int64_t inner = m.inner, begin = worker.begin(inner, kRows), end = worker.end(inner, kRows);
    linear(layer.gate, narrow, tokens, worker, gate.data(), inner);
    linear(layer.up, narrow, tokens, worker, up.data(), inner);
    for (int64_t t = 0; t < tokens; ++t) {
      float* g = gate.data() + t * inner;
      const float* u = up.data() + t * inner;
      if (m.squared_relu) {
#pragma omp simd
        for (int64_t o = begin; o < end; ++o) g[o] = g[o] > 0 ? g[o] * g[o] * u[o] : 0.0f;
      } else {
#pragma omp simd
        for (int64_t o = begin; o < end; ++o) g[o] = g[o] / (1 + exponential(-g[o])) * u[o];
      }
    }
    worker.wait();
  }

  void add(const Linear& l, const Quantised& from, const Worker& worker) {
    linear<true>(l, from, tokens, worker, x, m.hidden);
    worker.wait();
  }
};

// Sixteen of the head's weights as floats. (GCC 12 converts byte by byte when left to itself.)
#if defined(__AVX512BW__)
inline Floats floats(const int8_t* weight) {
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight))));
}
inline Floats floats(const uint16_t* weight) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight)));
  return (Floats)_mm512_slli_epi32(words, 16);
}
#else
inline Floats floats(const int8_t* weight) {
  Floats out;
  for (int i = 0; i < kLanes; ++i) out[i] = weight[i];
  return out;
}
inline Floats floats(const uint16_t* weight) {
  Words out;
  for (int i = 0; i < kLanes; ++i) out[i] = uint32_t(weight[i]) << 16;
  return (Floats)out;
}
#endif

inline float sum_lanes(const Floats& x) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// logits [T, V] of N tokens at a time, the head's rows divided among the workers.
template <int N, class Weight>
void logits_of(const Head& head, const Weight* weight, const float* hidden, int64_t first, const Worker& worker, float* out) {
  for (int64_t v = worker.begin(head.vocab), end = worker.end(head.vocab); v < end; ++v) {
    const Weight* row = weight + v * head.width;
    Floats sum[N] = {}, odd[N] = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= head.width; i += 2 * kLanes) {
      __builtin_prefetch(reinterpret_cast<const char*>(row + i) + kAhead);
      const Floats low = floats(row + i), high = floats(row + i + kLanes);
      for (int n = 0; n < N; ++n) {
        const float* x = hidden + (first + n) * head.width + i;
        sum[n] += low * *reinterpret_cast<const Floats*>(x);
        odd[n] += high * *reinterpret_cast<const Floats*>(x + kLanes);
      }
    }
    for (; i < head.width; i += kLanes)
      for (int n = 0; n < N; ++n)
        sum[n] += floats(row + i) * *reinterpret_cast<const Floats*>(hidden + (first + n) * head.width + i);
    for (int n = 0; n < N; ++n) {
      const float logit = sum_lanes(sum[n] + odd[n]);
      out[(first + n) * head.vocab + v] = head.row_scale ? logit * head.row_scale[v] : logit;
    }
  }
}

template <class Weight>
void all_logits(const Head& head, const Weight* weight, const float* hidden, int64_t tokens, const Worker& worker, float* out) {
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4) logits_of<4>(head, weight, hidden, t, worker, out);
  for (; t < tokens; ++t) logits_of<1>(head, weight, hidden, t, worker, out);
}

}  // namespace

extern "C" {

// x [T, D], the embeddings of tokens at position, position + 1, ..., becomes the hidden states after the last norm; the
// tokens' keys and values are in the caches then. Positions before must be there.
void bitnet_forward(const Model* model, float* x, int64_t tokens, int64_t position, int64_t threads) {
  Chunk chunk(*model, x, tokens, position);
  in_parallel(threads, [&](const Worker& worker) { chunk.run(worker); });
}

// logits [T, V] of hidden states [T, head.width], the columns from D on zeros.
void bitnet_logits(const Head* head, const float* hidden, int64_t tokens, int64_t threads, float* logits) {
  in_parallel(threads, [&](const Worker& worker) {
    if (head->int8) all_logits(*head, head->int8, hidden, tokens, worker, logits);
    else all_logits(*head, head->bf16, hidden, tokens, worker, logits);
  });
}

// One layer alone: y [T, O] for x [T, I].
void bitnet_linear(const Linear* l, const float* x, int64_t tokens, int64_t bits, int64_t threads, float* y) {
  Quantised quantised(tokens, l->inputs);
  in_parallel(threads, [&](const Worker& worker) {
    std::vector<int8_t> codes(quantised.width);
    for (int64_t t = worker.begin(tokens); t < worker.end(tokens); ++t)
      quantise(x + t * l->inputs, l->inputs, bits, quantised, t, codes.data());
    worker.wait();
    linear(*l, quantised, tokens, worker, y, l->outputs);
  });
}
}
