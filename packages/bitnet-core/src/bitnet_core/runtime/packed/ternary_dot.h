// Dot products of two-bit weights and eight-bit activations, for AVX-512 VNNI, AVX2, or any machine.
//
// A weight's code -1, 0, 1 is stored as the digit 0, 1, 2, four in a byte (bitnet_core.ternary.packed_linear), so a dot product
// is  sum(digit * x) - sum(x)  with unsigned digits and signed bytes x: what VNNI's vpdpbusd and AVX2's vpmaddubsw take.
// Activations lie in blocks of 256 columns as four planes of 64, plane k holding the columns 4 j + k: 64 bytes of codes,
// shifted right by 2 k and masked, then meet their activations without any shuffling, and the file's layout is read as
// it is, straight from the page cache.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

constexpr int kBlock = 256;  // columns of a block: 64 bytes of codes
constexpr int kPlane = 64;
constexpr int kRows = 4;     // rows and tokens of a register tile
constexpr int kTokens = 4;
constexpr int kAhead = 8192;  // bytes to fetch ahead: 44 GB/s a core where 47 can be read, 33 without

// sum(digit * x), exactly. `one_token`: of four rows, read one after the other, which is what memory likes best, and
// fetched well ahead. `tile`: of four rows and four tokens, so that a prompt's tokens share each unpacked weight. A row has
// `bytes` bytes of codes; a token has `width` integers.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

// The last block of a row may be short: what lies behind it is another row's, and is masked away.
inline __m512i load(const uint8_t* codes, int64_t left) {
  return left >= 64 ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8(~0ull >> (64 - left), codes);
}

// The sums over the lanes of four vectors.
inline void sum_lanes(const __m512i (&sum)[4], int32_t* out) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[0], sum[1]), _mm512_unpackhi_epi32(sum[0], sum[1]));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[2], sum[3]), _mm512_unpackhi_epi32(sum[2], sum[3]));
  const __m512i four = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(four), _mm512_extracti64x4_epi64(four, 1));
  const __m128i last = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), last);
}

void one_token(const uint8_t* codes, int64_t bytes, const int8_t* planes, int32_t* out) {
  // No shifts: plane k is multiplied by its digits times 4^k, and its sum divided at the end (below 2^31 up to a width
  // of a million: 16 lanes share it).
  const __m512i mask[4] = {_mm512_set1_epi8(3), _mm512_set1_epi8(12), _mm512_set1_epi8(48), _mm512_set1_epi8(-64)};
  __m512i sum[4];
  for (int r = 0; r < 4; ++r, codes += bytes) {
    __m512i part[4] = {};
    for (int64_t b = 0; b < bytes; b += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + b + kAhead), _MM_HINT_T0);
      const __m512i packed = load(codes + b, bytes - b);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k)
        part[k] = _mm512_dpbusd_epi32(part[k], _mm512_and_si512(packed, mask[k]),
                                      _mm512_load_si512(planes + 4 * b + k * kPlane));
    }
    sum[r] = _mm512_add_epi32(_mm512_add_epi32(part[0], _mm512_srai_epi32(part[1], 2)),
                              _mm512_add_epi32(_mm512_srai_epi32(part[2], 4), _mm512_srai_epi32(part[3], 6)));
  }
  sum_lanes(sum, out);
}

// Adds 64 bytes of codes of four rows times four tokens; sum is [token][row].
inline void add_block(const __m512i (&packed)[4], const int8_t* planes, int64_t width, __m512i (&sum)[4][4]) {
  const __m512i two_bits = _mm512_set1_epi8(3);
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    __m512i digits[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) digits[r] = _mm512_and_si512(_mm512_srli_epi16(packed[r], 2 * k), two_bits);
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      const __m512i x = _mm512_load_si512(planes + n * width + k * kPlane);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) sum[n][r] = _mm512_dpbusd_epi32(sum[n][r], digits[r], x);
    }
  }
}

// The sums stay in registers only where every loop over them is unrolled and the loop over the blocks has no branch: with
// an array that was set to {} and a masked load inside, GCC 12 made moves of them, and reached two thirds of this.
void tile(const uint8_t* codes, int64_t bytes, const int8_t* planes, int64_t width, int32_t (&out)[4][4]) {
  __m512i sum[4][4], packed[4];
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n)
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sum[n][r] = _mm512_setzero_si512();
  int64_t b = 0;
  for (; b + 64 <= bytes; b += 64) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) packed[r] = _mm512_loadu_si512(codes + r * bytes + b);
    add_block(packed, planes + 4 * b, width, sum);
  }
  if (b < bytes) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) packed[r] = load(codes + r * bytes + b, bytes - b);
    add_block(packed, planes + 4 * b, width, sum);
  }
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) sum_lanes(sum[n], out[n]);
}

#elif defined(__AVX2__)

inline int32_t sum_lanes(__m256i sum) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
}

// Adds 64 bytes of codes times N tokens.
template <int N>
inline void add_block(const uint8_t* codes, const int8_t* planes, int64_t width, __m256i (&sum)[N]) {
  const __m256i two_bits = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
  __m256i pairs[N] = {};  // 16 bits hold eight sums of two products: at most 8 * 2 * 2 * 127
  for (int half = 0; half < 64; half += 32) {
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + half));
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const __m256i digits = _mm256_and_si256(_mm256_srli_epi16(packed, 2 * k), two_bits);
      for (int n = 0; n < N; ++n) {
        const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(planes + n * width + k * kPlane + half));
        pairs[n] = _mm256_add_epi16(pairs[n], _mm256_maddubs_epi16(digits, x));
      }
    }
  }
  for (int n = 0; n < N; ++n) sum[n] = _mm256_add_epi32(sum[n], _mm256_madd_epi16(pairs[n], ones));
}

template <int N>
inline void one_row(const uint8_t* codes, int64_t bytes, const int8_t* planes, int64_t width, __m256i (&sum)[N]) {
  int64_t b = 0;
  for (; b + 64 <= bytes; b += 64) {
    if (N == 1) _mm_prefetch(reinterpret_cast<const char*>(codes + b + kAhead), _MM_HINT_T0);
    add_block(codes + b, planes + 4 * b, width, sum);
  }
  if (b == bytes) return;
  uint8_t rest[64] = {};
  std::memcpy(rest, codes + b, bytes - b);
  add_block(rest, planes + 4 * b, width, sum);
}

void one_token(const uint8_t* codes, int64_t bytes, const int8_t* planes, int32_t* out) {
  for (int r = 0; r < 4; ++r) {
    __m256i sum[1] = {};
    one_row(codes + r * bytes, bytes, planes, 0, sum);
    out[r] = sum_lanes(sum[0]);
  }
}

__attribute__((noinline)) void tile(const uint8_t* codes, int64_t bytes, const int8_t* planes, int64_t width, int32_t (&out)[4][4]) {
  for (int r = 0; r < 4; ++r) {
    __m256i sum[4] = {};
    one_row(codes + r * bytes, bytes, planes, width, sum);
    for (int n = 0; n < 4; ++n) out[n][r] = sum_lanes(sum[n]);
  }
}

#else

void one_token(const uint8_t* codes, int64_t bytes, const int8_t* planes, int32_t* out) {
  for (int r = 0; r < 4; ++r, codes += bytes) {
    int32_t sum = 0;
    for (int64_t b = 0; b < bytes; b += kPlane)
      for (int k = 0; k < 4; ++k) {
        const int8_t* x = planes + 4 * b + k * kPlane;
        const int64_t count = std::min<int64_t>(kPlane, bytes - b);
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < count; ++j) sum += (codes[b + j] >> (2 * k) & 3) * x[j];
      }
    out[r] = sum;
  }
}

__attribute__((noinline)) void tile(const uint8_t* codes, int64_t bytes, const int8_t* planes, int64_t width, int32_t (&out)[4][4]) {
  for (int n = 0; n < 4; ++n) one_token(codes, bytes, planes + n * width, out[n]);
}

#endif

}  // namespace
