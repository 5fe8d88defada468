/* Runs the AMX instructions that the kernels use on a processor without them: preload it as a shared library.
 *
 * Such an instruction raises SIGILL; the handler decodes it, does what Intel's manual says, as strictly as the processor
 * would, and goes on behind it. It also grants the permission that the kernels ask the system for. What it does not know
 * or what the processor would refuse ends the process with a line on stderr.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <immintrin.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

/* Of each thread, as the registers are. */
static __thread struct {
  int is_configured;
  int rows[TILES], row_bytes[TILES];
  uint8_t data[TILES][ROWS][ROW_BYTES];
} own;

static unsigned long num_products;

/* For tests: that the instructions were there at all. */
__attribute__((visibility("default"))) unsigned long emulated_products(void) { return num_products; }

static void refuse(const char *why) {
  dprintf(STDERR_FILENO, "amx_emulator: %s\n", why);
  _exit(99);
}

static void must(int holds, const char *why) {
  if (!holds) refuse(why);
}

/* One instruction: VEX of three bytes, opcode, ModRM. */
struct Decoded {
  int prefix, opcode, reg, rm, vvvv, is_memory;
  uint8_t *address; /* of the base */
  int64_t stride;
  int length;
};

static int64_t register_value(const ucontext_t *context, int number) {
  static const int ORDER[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context->uc_mcontext.gregs[ORDER[number]];
}

static void decode_memory(struct Decoded *found, const uint8_t *code, const ucontext_t *context, int x, int b) {
  const int mod = code[4] >> 6;
  int at = 5, base = found->rm;
  int64_t address = 0;
  if (base == 4) {
    const int sib = code[at++], index = (sib >> 3 & 7) | x << 3;
    base = sib & 7;
    if (index != 4) found->stride = register_value(context, index) << (sib >> 6);
  } else if (mod == 0 && base == 5) {
    refuse("an address relative to the instruction");
  }
  if (mod == 0 && base == 5) {
    int32_t offset;
    memcpy(&offset, code + at, 4);
    address = offset;
    at += 4;
  } else {
    address = register_value(context, base | b << 3);
  }
  if (mod == 1) address += (int8_t)code[at++];
  if (mod == 2) {
    int32_t offset;
    memcpy(&offset, code + at, 4);
    address += offset;
    at += 4;
  }
  found->address = (uint8_t *)address;
  found->length = at;
}

static struct Decoded decode(const ucontext_t *context) {
  const uint8_t *code = (const uint8_t *)context->uc_mcontext.gregs[REG_RIP];
  struct Decoded found = {0};
  must(code[0] == 0xc4 && (code[1] & 31) == 2, "not an AMX instruction");
  must(!(code[2] & 0x80) && !(code[2] & 4), "W and L must be 0");
  const int r = !(code[1] & 0x80), x = !(code[1] & 0x40), b = !(code[1] & 0x20);
  must(!r, "there are eight tiles");
  found.prefix = code[2] & 3;
  found.vvvv = ~(code[2] >> 3) & 15;
  found.opcode = code[3];
  found.reg = code[4] >> 3 & 7;
  found.rm = code[4] & 7;
  found.is_memory = code[4] >> 6 != 3;
  found.length = 5;
  if (found.is_memory)
    decode_memory(&found, code, context, x, b);
  else
    must(!b, "there are eight tiles");
  return found;
}

static void configure(const uint8_t *from) {
  must(from[0] == 1, "the palette must be 1");
  must(from[1] == 0, "the first row must be 0");
  for (int i = 2; i < 16; ++i) must(from[i] == 0, "reserved bytes must be 0");
  for (int i = 16 + 2 * TILES; i < 48; ++i) must(from[i] == 0, "there are eight tiles");
  for (int i = 48 + TILES; i < 64; ++i) must(from[i] == 0, "there are eight tiles");
  memset(&own, 0, sizeof own);
  for (int t = 0; t < TILES; ++t) {
    own.row_bytes[t] = from[16 + 2 * t] | from[17 + 2 * t] << 8;
    own.rows[t] = from[48 + t];
    must(own.row_bytes[t] <= ROW_BYTES && own.rows[t] <= ROWS, "a tile is too large");
    must(!own.row_bytes[t] == !own.rows[t], "a tile with rows without bytes, or bytes without rows");
  }
  own.is_configured = 1;
}

static void must_be_valid(int tile) {
  must(own.is_configured, "tiles are used that are not configured");
  must(tile < TILES && own.rows[tile] > 0, "a tile of no rows is used");
  must(own.row_bytes[tile] % 4 == 0, "a row is not whole words");
}

static void load_tile(int tile, const uint8_t *from, int64_t stride) {
  must_be_valid(tile);
  memset(own.data[tile], 0, sizeof own.data[tile]);
  for (int row = 0; row < own.rows[tile]; ++row) memcpy(own.data[tile][row], from + row * stride, own.row_bytes[tile]);
}

static void store_tile(int tile, uint8_t *to, int64_t stride) {
  must_be_valid(tile);
  for (int row = 0; row < own.rows[tile]; ++row) memcpy(to + row * stride, own.data[tile][row], own.row_bytes[tile]);
}

static float wide(const uint8_t *bfloat16) {
  float value;
  const uint32_t bits = (uint32_t)(bfloat16[0] | bfloat16[1] << 8) << 16;
  memcpy(&value, &bits, 4);
  return value;
}

/* Pairs are summed apart: all first numbers, all second ones, then both, then with what is there. */
static void multiply_bfloat16(uint8_t *sum, const uint8_t *a, int b, int column) {
  volatile float first = 0, second = 0, before;
  for (int k = 0; k < own.rows[b]; ++k) {
    const uint8_t *pair = own.data[b][k] + 4 * column;
    first = fmaf(wide(a + 4 * k), wide(pair), first);
    second = fmaf(wide(a + 4 * k + 2), wide(pair + 2), second);
  }
  memcpy((void *)&before, sum, 4);
  const volatile float both = first + second, after = before + both;
  memcpy(sum, (const void *)&after, 4);
}

static void multiply_bytes(uint8_t *sum, const uint8_t *a, int b, int column, int a_is_signed, int b_is_signed) {
  uint32_t total;
  memcpy(&total, sum, 4);
  for (int k = 0; k < own.rows[b]; ++k)
    for (int i = 0; i < 4; ++i) {
      const uint8_t left = a[4 * k + i], right = own.data[b][k][4 * column + i];
      total += (uint32_t)((a_is_signed ? (int8_t)left : left) * (b_is_signed ? (int8_t)right : right));
    }
  memcpy(sum, &total, 4);
}

static void multiply(const struct Decoded *found) {
  const int c = found->reg, a = found->rm, b = found->vvvv;
  must(c != a && c != b && a != b, "the three tiles of a product must differ");
  must_be_valid(c);
  must_be_valid(a);
  must_be_valid(b);
  must(own.rows[c] == own.rows[a], "the sum has other rows than its left factor");
  must(own.row_bytes[c] == own.row_bytes[b], "the sum has other columns than its right factor");
  must(own.row_bytes[a] == 4 * own.rows[b], "the factors have different K");
  __atomic_add_fetch(&num_products, 1, __ATOMIC_RELAXED);
  /* Results and factors that are denormal are 0, to the nearest. The system puts the mode back behind the handler. */
  _mm_setcsr(0x1f80 | 0x8040);
  for (int row = 0; row < own.rows[c]; ++row)
    for (int column = 0; column < own.row_bytes[c] / 4; ++column) {
      uint8_t *sum = own.data[c][row] + 4 * column;
      if (found->opcode == 0x5c)
        multiply_bfloat16(sum, own.data[a][row], b, column);
      else /* signed by signed, signed by unsigned, unsigned by signed, unsigned by unsigned */
        multiply_bytes(sum, own.data[a][row], b, column, found->prefix >= 2, found->prefix == 3 || found->prefix == 1);
    }
}

static void run(const struct Decoded *found) {
  enum { NONE, X66, XF3, XF2 };
  if (found->opcode == 0x49 && found->prefix == NONE && found->is_memory && found->reg == 0)
    configure(found->address);
  else if (found->opcode == 0x49 && found->prefix == NONE && !found->is_memory && found->reg == 0 && found->rm == 0)
    memset(&own, 0, sizeof own);
  else if (found->opcode == 0x49 && found->prefix == XF2 && !found->is_memory && found->rm == 0) {
    must_be_valid(found->reg);
    memset(own.data[found->reg], 0, sizeof own.data[0]);
  } else if (found->opcode == 0x4b && found->prefix == XF2 && found->is_memory && found->rm == 4)
    load_tile(found->reg, found->address, found->stride);
  else if (found->opcode == 0x4b && found->prefix == XF3 && found->is_memory && found->rm == 4)
    store_tile(found->reg, found->address, found->stride);
  else if (((found->opcode == 0x5c && found->prefix == XF3) || found->opcode == 0x5e) && !found->is_memory)
    multiply(found);
  else
    refuse("an instruction that it does not know");
}

static void on_illegal_instruction(int signal, siginfo_t *info, void *raw) {
  (void)signal, (void)info;
  const int before = errno;
  ucontext_t *context = raw;
  const struct Decoded found = decode(context);
  run(&found);
  context->uc_mcontext.gregs[REG_RIP] += found.length;
  errno = before;
}

__attribute__((constructor)) static void install(void) {
  struct sigaction action = {.sa_sigaction = on_illegal_instruction, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGILL, &action, NULL);
}

/* In place of libc's. */
__attribute__((visibility("default"))) long syscall(long number, ...) {
  long given[6];
  va_list rest;
  va_start(rest, number);
  for (int i = 0; i < 6; ++i) given[i] = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_arch_prctl && given[0] == 0x1023 && given[1] == 18) return 0;
  register long r10 __asm__("r10") = given[3], r8 __asm__("r8") = given[4], r9 __asm__("r9") = given[5];
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(given[0]), "S"(given[1]), "d"(given[2]), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  if (result < 0 && result > -4096) {
    errno = (int)-result;
    return -1;
  }
  return result;
}
