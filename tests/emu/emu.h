// What kernel sources see instead of CUDA's built-in names. No header of a library is included, as kernels include none, so that a name of
// the C library cannot hide a mistake that NVRTC would report.
//
// A kernel file becomes one translation unit: this header, then common.cuh and the file inside an unnamed namespace (emulated.py writes it).
// EMU_STEM is the file's name without its suffix, as a string; it names the section in which the file's __shared__ variables lie.
#pragma once

#include "threads.h"

#define EMU 1

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block runs at a time, so that a static variable is a block's own. The section lets the emulator poison all of them between two blocks.
#define __shared__ static __attribute__((section("emu_shared_" EMU_STEM)))

#define EMU_VECTOR2(name, T, alignment) \
    struct alignas(alignment) name { T x, y; }; \
    static inline name make_##name(T x, T y) { return {x, y}; }
#define EMU_VECTOR4(name, T, alignment) \
    struct alignas(alignment) name { T x, y, z, w; }; \
    static inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTOR2(int2, int, 8)
EMU_VECTOR2(uint2, unsigned, 8)
EMU_VECTOR2(float2, float, 8)
EMU_VECTOR2(double2, double, 16)
EMU_VECTOR4(int4, int, 16)
EMU_VECTOR4(uint4, unsigned, 16)
EMU_VECTOR4(float4, float, 16)
#undef EMU_VECTOR2
#undef EMU_VECTOR4

namespace emu {

// Values of 4 and 8 bytes go through the exchange as one or two words.
template <typename T> T swap(unsigned mask, Meeting what, T value, unsigned source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "lanes exchange values of 4 or 8 bytes");
    unsigned words[sizeof(T) / 4];
    __builtin_memcpy(words, &value, sizeof(T));
    for (unsigned& word : words) word = exchange(mask, what, word, source);
    __builtin_memcpy(&value, words, sizeof(T));
    return value;
}

// The last lane of this lane's segment, of `width` lanes.
static inline unsigned segment_end(unsigned width) { return current->lane | (width - 1); }

}  // namespace emu

#define threadIdx (emu::current->index)
#define blockIdx (emu::block_index)
#define blockDim (emu::block_size)
#define gridDim (emu::grid_size)
#define warpSize 32

static inline unsigned char* emu_dynamic_shared() { return emu::dynamic_shared; }

// The empty assembly keeps the compiler from holding a __shared__ variable in a register over a barrier.
#define EMU_FENCE() __asm__ volatile("" ::: "memory")
static inline void __syncthreads() { EMU_FENCE(); emu::barrier(); EMU_FENCE(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { EMU_FENCE(); emu::meet(mask, emu::SYNCWARP); EMU_FENCE(); }
static inline void __threadfence() { EMU_FENCE(); }
static inline void __threadfence_block() { EMU_FENCE(); }
static inline unsigned __ballot_sync(unsigned mask, int vote) { return emu::ballot(mask, vote != 0); }

template <typename T> static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    unsigned in_segment = unsigned(source) & unsigned(width - 1);
    return emu::swap(mask, emu::SHUFFLE, value, (emu::current->lane & ~unsigned(width - 1)) | in_segment);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    unsigned source = emu::current->lane ^ (unsigned(bits) & 31u);
    return emu::swap(mask, emu::SHUFFLE_XOR, value, source <= emu::segment_end(width) ? source : emu::current->lane);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned source = emu::current->lane + (delta & 31u);
    return emu::swap(mask, emu::SHUFFLE_DOWN, value, source <= emu::segment_end(width) ? source : emu::current->lane);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    int source = int(emu::current->lane) - int(delta & 31u);
    int begin = int(emu::current->lane & ~unsigned(width - 1));
    return emu::swap(mask, emu::SHUFFLE_UP, value, source >= begin ? unsigned(source) : emu::current->lane);
}

// One thread runs at a time: what is one statement is atomic.
template <typename T> static inline T emu_atomic(T* at, T value) { T old = *at; *at = value; return old; }
template <typename T> static inline T atomicAdd(T* at, decltype(T() + T()) value) { return emu_atomic(at, T(*at + value)); }
template <typename T> static inline T atomicMax(T* at, decltype(T() + T()) value) { return emu_atomic(at, *at < T(value) ? T(value) : *at); }
template <typename T> static inline T atomicMin(T* at, decltype(T() + T()) value) { return emu_atomic(at, T(value) < *at ? T(value) : *at); }
template <typename T> static inline T atomicExch(T* at, decltype(T() + T()) value) { return emu_atomic(at, T(value)); }
template <typename T> static inline T atomicCAS(T* at, decltype(T() + T()) is, decltype(T() + T()) value) {
    return emu_atomic(at, *at == T(is) ? T(value) : *at);
}

extern "C" {
float expf(float) noexcept;
float exp2f(float) noexcept;
float logf(float) noexcept;
float log2f(float) noexcept;
float log1pf(float) noexcept;
float expm1f(float) noexcept;
float powf(float, float) noexcept;
float sinf(float) noexcept;
float cosf(float) noexcept;
float tanhf(float) noexcept;
float erff(float) noexcept;
float sqrtf(float) noexcept;
float fmaf(float, float, float) noexcept;
float fmaxf(float, float) noexcept;
float fminf(float, float) noexcept;
float fabsf(float) noexcept;
float floorf(float) noexcept;
float ceilf(float) noexcept;
float rintf(float) noexcept;
double exp(double) noexcept;
double log(double) noexcept;
double tanh(double) noexcept;
double erf(double) noexcept;
double sqrt(double) noexcept;
double fma(double, double, double) noexcept;
double fmax(double, double) noexcept;
double fmin(double, double) noexcept;
double fabs(double) noexcept;
double floor(double) noexcept;
double rint(double) noexcept;
}
static inline float rsqrtf(float x) { return float(1.0 / __builtin_sqrt(double(x))); }

template <typename To, typename From> static inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits are kept");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
static inline int __ffs(int x) { return __builtin_ffs(x); }

#define EMU_MIN_MAX(T) \
    static inline T min(T a, T b) { return b < a ? b : a; } \
    static inline T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX

// One line for every kernel at the end of its file: the name and the type of its only argument.
#define EMU_KERNEL(name, Arguments) \
    static_assert(__is_trivially_copyable(Arguments), "arguments of a kernel are plain bytes"); \
    static const emu::Registration emu_registration_##name( \
        EMU_STEM, #name, sizeof(Arguments), [](const void* a) { name(*static_cast<const Arguments*>(a)); }, EMU_SHARED, EMU_SHARED_END);
