// Tiles: eight registers of at most 16 rows of 64 bytes, and products of two of them that are added to a third.
//
// The same names have two implementations: the instructions of the processor (AMX), and plain loops with the same order
// of summation and the same rounding, which show on any machine what the instructions give (PLAIN_TILES, for tests).
//
// In a product C += A B, a row of A holds 16 words of 32 bits along K, a row of B the words of one K step in 16 columns:
// two bfloat16 or four bytes a word. A has as many rows as C.
#pragma once

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define TILE_INSTRUCTIONS
#endif

#if defined(TILE_INSTRUCTIONS) || defined(PLAIN_TILES)
#define HAS_TILES

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#ifdef TILE_INSTRUCTIONS
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tile {

constexpr int COUNT = 8, ROWS = 16, ROW_BYTES = 64, WORDS = ROW_BYTES / 4;

// Rows of every tile and bytes of each row, as the processor reads them. A tile of no rows may not be used.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int num_rows, int num_bytes = ROW_BYTES) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    row_bytes[tile] = static_cast<uint16_t>(num_bytes);
  }
};
static_assert(sizeof(Shapes) == 64 && offsetof(Shapes, row_bytes) == 16 && offsetof(Shapes, rows) == 48);

// The compiler is told of all memory at each load, store and configuration: it may not move what others write past
// them. GCC's own intrinsics for loads and configuration do not tell it.
#ifdef TILE_INSTRUCTIONS

// Once for each process before its first tile; forks inherit it. False says that the system refuses, errno why.
inline bool ask_permission() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

inline void configure(const Shapes &shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory"); }
inline void release() { asm volatile("tilerelease" : : : "memory"); }

template <int T> inline void zero() { asm volatile("tilezero %%tmm%c0" : : "i"(T) : "memory"); }

// `stride`: bytes from one row to the next in memory.
template <int T> inline void load(const void *from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T> inline void store(void *to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
}

// C += A B with bfloat16, summed in float32.
template <int C, int A, int B> inline void add_bfloat16() {
  static_assert(C != A && C != B && A != B);
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B) : "memory");
}
// C += A B with unsigned bytes in A and signed ones in B, summed in int32.
template <int C, int A, int B> inline void add_int8() {
  static_assert(C != A && C != B && A != B);
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B) : "memory");
}

#else

struct Registers {
  Shapes shapes;
  bool is_configured = false;
  alignas(64) uint32_t words[COUNT][ROWS][WORDS] = {};
};
inline thread_local Registers registers;

// Where the processor would end the program.
inline void must(bool holds, const char *rule) {
  if (holds) return;
  std::fprintf(stderr, "tile: %s\n", rule);
  std::abort();
}

inline void must_have(const Registers &own, int tile) {
  must(own.is_configured && own.shapes.rows[tile] > 0, "a tile is used that is not configured");
}

inline void configure(const Shapes &shapes) {
  for (int t = 0; t < COUNT; ++t) {
    must(shapes.rows[t] <= ROWS && shapes.row_bytes[t] <= ROW_BYTES, "a tile is too large");
    must((shapes.rows[t] == 0) == (shapes.row_bytes[t] == 0), "a tile has rows without bytes or bytes without rows");
    must(shapes.row_bytes[t] % 4 == 0, "a row is not whole words");
  }
  registers.shapes = shapes;
  registers.is_configured = true;
  std::memset(registers.words, 0, sizeof registers.words);
}

inline void release() { registers.is_configured = false; }

template <int T> inline void zero() {
  must_have(registers, T);
  std::memset(registers.words[T], 0, sizeof registers.words[T]);
}

template <int T> inline void load(const void *from, int64_t stride) {
  Registers &own = registers;
  zero<T>();
  for (int row = 0; row < own.shapes.rows[T]; ++row)
    std::memcpy(own.words[T][row], static_cast<const char *>(from) + row * stride, own.shapes.row_bytes[T]);
}

template <int T> inline void store(void *to, int64_t stride) {
  const Registers &own = registers;
  must_have(own, T);
  for (int row = 0; row < own.shapes.rows[T]; ++row)
    std::memcpy(static_cast<char *>(to) + row * stride, own.words[T][row], own.shapes.row_bytes[T]);
}

inline void must_fit(const Registers &own, int c, int a, int b) {
  for (int tile : {c, a, b}) must_have(own, tile);
  const Shapes &shapes = own.shapes;
  must(shapes.rows[c] == shapes.rows[a], "the sum has other rows than its left factor");
  must(shapes.row_bytes[c] == shapes.row_bytes[b], "the sum has other columns than its right factor");
  must(shapes.row_bytes[a] == 4 * shapes.rows[b], "the factors have different K");
}

// Denormal numbers are zero as factors and as results; sums are rounded to the nearest, of two the even one.
class TileRounding {
public:
  TileRounding() : before(_mm_getcsr()) {
    constexpr unsigned FLUSH_RESULTS = 0x8000, FLUSH_FACTORS = 0x0040, ROUNDING = 0x6000;
    _mm_setcsr((before & ~ROUNDING) | FLUSH_RESULTS | FLUSH_FACTORS);
    asm volatile("" : : : "memory");
  }
  ~TileRounding() {
    asm volatile("" : : : "memory");
    _mm_setcsr(before);
  }
  TileRounding(const TileRounding &) = delete;

private:
  unsigned before;
};

inline __m512 as_floats(__m512i bits) { return _mm512_castsi512_ps(bits); }

// The lower and the upper halves of the words are summed apart, from zero in each product; then their sum is added.
template <int C, int A, int B> inline void add_bfloat16() {
  static_assert(C != A && C != B && A != B);
  Registers &own = registers;
  must_fit(own, C, A, B);
  const TileRounding rounding;
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  for (int row = 0; row < own.shapes.rows[C]; ++row) {
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    for (int k = 0; k < own.shapes.rows[B]; ++k) {
      const __m512i a = _mm512_set1_epi32(static_cast<int>(own.words[A][row][k]));
      const __m512i b = _mm512_load_si512(own.words[B][k]);
      low = _mm512_fmadd_ps(as_floats(_mm512_slli_epi32(a, 16)), as_floats(_mm512_slli_epi32(b, 16)), low);
      high = _mm512_fmadd_ps(as_floats(_mm512_and_si512(a, upper)), as_floats(_mm512_and_si512(b, upper)), high);
    }
    float *sum = reinterpret_cast<float *>(own.words[C][row]);
    _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(low, high)));
  }
}

template <int C, int A, int B> inline void add_int8() {
  static_assert(C != A && C != B && A != B);
  Registers &own = registers;
  must_fit(own, C, A, B);
  for (int row = 0; row < own.shapes.rows[C]; ++row) {
    __m512i sum = _mm512_load_si512(own.words[C][row]);
    for (int k = 0; k < own.shapes.rows[B]; ++k) {
      const __m512i a = _mm512_set1_epi32(static_cast<int>(own.words[A][row][k]));
      sum = _mm512_dpbusd_epi32(sum, a, _mm512_load_si512(own.words[B][k]));
    }
    _mm512_store_si512(own.words[C][row], sum);
  }
}

#endif

// The tiles of the calling thread, released with the object: else the system saves them at each change of threads.
// One at a time in each thread.
class Tiles {
public:
  Tiles() = default;
  Tiles(const Tiles &) = delete;
  ~Tiles() {
    if (is_configured) release();
  }

  // What the tiles hold is undefined afterwards.
  void shape(const Shapes &shapes) {
    if (is_configured && std::memcmp(&shapes, &now, sizeof now) == 0) return;
    now = shapes;
    configure(now);
    is_configured = true;
  }

private:
  Shapes now;
  bool is_configured = false;
};

} // namespace tile
#endif
