// What all kernels share: bfloat16, sums over a warp, activations, the epilogue of products, the rows of a step.
//
// The host puts this text in front of every .cu file. Nothing is included, so that a compiler needs no header of the toolkit. Every
// kernel takes one structure by value. Under EMU the same text is compiled for the CPU, and whatever is written in PTX has a second body.

#define WARP 32
#define BLOCK 16             // positions of a block of the cache
#define NO_TOKEN 0xFFFFFFFFu // a row without an id: its embedding is given, or its logits chose nothing

#ifdef EMU
#define DYNAMIC_SHARED(name) unsigned char* name = emu_dynamic_shared()
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#ifndef INFINITY
#define INFINITY __uint_as_float(0x7F800000u)
#endif

typedef unsigned short bf16;
typedef unsigned long long u64;

// Values in sixteen bytes.
template <typename T> struct Vector;
template <> struct Vector<float> { enum { LENGTH = 4 }; };
template <> struct Vector<bf16> { enum { LENGTH = 8 }; };

// ---------------------------------------------------------------------------------------------------------------- numbers

__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((unsigned)x << 16); }
__device__ __forceinline__ float widen(float x) { return x; }

// To the nearest bfloat16, ties to even; what is no number stays none.
__device__ __forceinline__ bf16 to_bf16(float x) {
#ifdef EMU
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (bf16)0x7FFF;
    return (bf16)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
#else
    bf16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return rounded;
#endif
}

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return to_bf16(x); }

// Two values side by side in a word, the first in the lower half.
__device__ __forceinline__ unsigned pair(float low, float high) {
#ifdef EMU
    return (unsigned)to_bf16(low) | (unsigned)to_bf16(high) << 16;
#else
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#endif
}

// The values of sixteen bytes.
__device__ __forceinline__ void unpack(const uint4& from, float (&to)[4]) {
    to[0] = __uint_as_float(from.x);
    to[1] = __uint_as_float(from.y);
    to[2] = __uint_as_float(from.z);
    to[3] = __uint_as_float(from.w);
}

__device__ __forceinline__ void unpack(const uint4& from, float (&to)[8]) {
    const unsigned words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(words[i] << 16);
        to[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
    }
}

// A kernel may begin before the one in front of it has ended, where the host allows it (compute capability 9.0 and later), and what it does
// before this call overlaps with that one: only weights may be read there. Every thread of every kernel calls this, also one that has nothing
// to do, for the kernel behind this one relies on all those before having ended.
__device__ __forceinline__ void after_the_kernel_before() {
#ifdef EMU
    emu_after_the_kernel_before();
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Sixteen bytes of weights, which no kernel writes and a step reads once.
__device__ __forceinline__ uint4 load_once(const void* at) {
#ifdef EMU
    return *(const uint4*)at;
#else
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(at));
    return r;
#endif
}

// Sixteen bytes of global memory whose address lies in memory, so that the compiler does not know of what kind it is.
__device__ __forceinline__ uint4 load(const void* at) {
#ifdef EMU
    return *(const uint4*)at;
#else
    uint4 r;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(at));
    return r;
#endif
}

// Sixteen bytes on their way from global to shared memory: the first `bytes` of them, and zeros behind. They are there when the thread has
// waited for the group that they were committed with.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
#ifdef EMU
    emu_copy_async(to, from, bytes);
#else
    asm volatile("{ .reg .u64 at; cvta.to.shared.u64 at, %0; .reg .u32 place; cvt.u32.u64 place, at; "
                 "cp.async.cg.shared.global [place], [%1], 16, %2; }"
                 :
                 : "l"(to), "l"(from), "r"(bytes)
                 : "memory");
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void copy_commit() {
#ifdef EMU
    emu_copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for the thread's groups of copies but the last `LEFT`.
template <int LEFT> __device__ __forceinline__ void copy_wait() {
#ifdef EMU
    emu_copy_wait(LEFT);
#else
    asm volatile("cp.async.wait_group %0;" : : "n"(LEFT) : "memory");
#endif
}

// c += a · b on the tensor cores: 16 × 16 by 16 × 8, rows of a and columns of b lying in one piece.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef EMU
    emu_mma_bf16(c, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Sums and maxima over the lanes of a warp, in one fixed tree; every lane gets them.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
    return x;
}

// ------------------------------------------------------------------------------------------------------------ activations

// In the order of the host's list; formulas are those of transformers' `activations`. Comparisons let what is no number through.
enum Activation {
    LINEAR, RELU, RELU2, RELU6, LEAKY_RELU, GELU, GELU_10, GELU_NEW, QUICK_GELU, SILU, MISH, TANH, SIGMOID, HARD_SWISH, LAPLACE,
    SQRT_SOFTPLUS
};

__device__ __forceinline__ float at_least(float x, float low) { return x < low ? low : x; }
__device__ __forceinline__ float at_most(float x, float high) { return x > high ? high : x; }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __noinline__ float activate(int activation, float x) {
    switch (activation) {
        case RELU: return at_least(x, 0.0f);
        case RELU2: { float r = at_least(x, 0.0f); return r * r; }
        case RELU6: return at_most(at_least(x, 0.0f), 6.0f);
        case LEAKY_RELU: return x < 0.0f ? x * 0.01f : x;
        case GELU: return x * 0.5f * (1.0f + erff(x * 0.707106781f));
        case GELU_10: return at_most(at_least(x * 0.5f * (1.0f + erff(x * 0.707106781f)), -10.0f), 10.0f);
        case GELU_NEW: return x * 0.5f * (1.0f + tanhf(0.7978846f * (x + 0.044715f * (x * x * x))));
        case QUICK_GELU: return x * sigmoid(1.702f * x);
        case SILU: return x * sigmoid(x);
        case MISH: {
            if (x > 20.0f) return x;
            float e = expf(x), n = e * (e + 2.0f);
            return x * (n / (n + 2.0f));
        }
        case TANH: return tanhf(x);
        case SIGMOID: return sigmoid(x);
        case HARD_SWISH: return x * at_most(at_least(x + 3.0f, 0.0f), 6.0f) / 6.0f;
        case LAPLACE: return 0.5f * (1.0f + erff((x - 0.707107f) / (0.282095f * 1.41421356f)));
        case SQRT_SOFTPLUS: return x > 20.0f ? sqrtf(x) : sqrtf(log1pf(expf(x)));
        default: return x;
    }
}

// ------------------------------------------------------------------------------------------------------------------- norms

enum NormKind { NO_NORM, LAYER_NORM, RMS_NORM };

struct NormArgs {
    const float* weight; // both can be read in whole sixteen bytes
    const float* bias;   // of layer norms
    float eps;
    int kind;
};

// Four neighbouring values from `i` on, of which those from `n` on are zeros. Rows and weights begin at sixteen bytes and end at them, so that
// all four can be read, whatever the last ones are. There is no branch, so that many of these are under way at a time.
__device__ __forceinline__ float4 four(const float* x, int i, int n) {
    float4 all = i < n ? *(const float4*)(x + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return make_float4(all.x, i + 1 < n ? all.y : 0.0f, i + 2 < n ? all.z : 0.0f, i + 3 < n ? all.w : 0.0f);
}

// Mean and reciprocal deviation of a row, by one warp; every lane gets them. An rms norm has no mean. Eight times four values of a lane are
// under way at a time, since whoever reads a row first waits for them.
__device__ __forceinline__ float2 statistics(const float* x, int n, const NormArgs& norm, int lane) {
    constexpr int AT_ONCE = 8, STEP = 4 * WARP * AT_ONCE;
    float mean = 0.0f;
    if (norm.kind == LAYER_NORM) {
        float sum = 0.0f;
        for (int from = lane * 4; from < n; from += STEP) {
            float4 some[AT_ONCE];
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) some[j] = four(x, from + j * 4 * WARP, n);
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) sum += (some[j].x + some[j].y) + (some[j].z + some[j].w);
        }
        mean = warp_sum(sum) / n;
    }
    float square = 0.0f;
    for (int from = lane * 4; from < n; from += STEP) {
        float4 some[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) some[j] = four(x, from + j * 4 * WARP, n);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            float parts[4] = {some[j].x, some[j].y, some[j].z, some[j].w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float d = from + j * 4 * WARP + i < n ? parts[i] - mean : 0.0f;
                square = fmaf(d, d, square);
            }
        }
    }
    return make_float2(mean, 1.0f / sqrtf(warp_sum(square) / n + norm.eps));
}

// The same of a head, which lies anywhere in a row.
__device__ __forceinline__ float2 statistics_of_head(const float* x, int d, const NormArgs& norm, int lane) {
    float sum = 0.0f, square = 0.0f;
    for (int i = lane; i < d; i += WARP) sum += x[i];
    float mean = norm.kind == LAYER_NORM ? warp_sum(sum) / d : 0.0f;
    for (int i = lane; i < d; i += WARP) square = fmaf(x[i] - mean, x[i] - mean, square);
    return make_float2(mean, 1.0f / sqrtf(warp_sum(square) / d + norm.eps));
}

// With the column's weight, and its bias or 0.
__device__ __forceinline__ float normalize(float x, float2 by, float weight, float bias) { return (x - by.x) * by.y * weight + bias; }

__device__ __forceinline__ float normalize(float x, float2 by, const NormArgs& norm, int column) {
    return normalize(x, by, norm.weight[column], norm.kind == LAYER_NORM ? norm.bias[column] : 0.0f);
}

// ---------------------------------------------------------------------------------------------------------------- products

// Where some outputs of a product go.
struct Results {
    float* at;
    int stride;     // floats from one row to the next
    int first;      // first of the product's outputs that goes here
    int activation; // applied after the bias
};

#define MOST_RESULTS 4

// One matrix, or several with one input as one below the other, with what is fused around the product.
struct LinearArgs {
    const float* x; // rows × inputs
    const void* w;  // outputs × inputs, rows of whole sixteen bytes with zeros behind them
    const float* bias;     // by output, or null
    const float* residual; // rows that are added last, or null
    NormArgs norm;         // applied to the input
    Results results[MOST_RESULTS];
    int x_stride, w_stride, residual_stride;
    int rows, inputs, outputs;
    int count; // of results
    int gated; // outputs are pairs of a gate and what is multiplied by it; half as many results
    int split; // warps that share the inputs of an output
};

// What is added to output `n` and its neighbour of a row, which even and odd outputs have in common.
struct Added {
    float bias[2], residual[2];
};

__device__ __forceinline__ void fetch_bias(const LinearArgs& a, int n, Added& to) {
#pragma unroll
    for (int i = 0; i < 2; i++) to.bias[i] = a.bias && n + i < a.outputs ? a.bias[n + i] : 0.0f;
}

__device__ __forceinline__ void fetch_residual(const LinearArgs& a, int row, int n, Added& to) {
#pragma unroll
    for (int i = 0; i < 2; i++)
        to.residual[i] = a.residual && row < a.rows && n + i < a.outputs ? a.residual[(long long)row * a.residual_stride + n + i] : 0.0f;
}

// Finishes output `n`, which is even, and its neighbour.
__device__ __forceinline__ void finish(const LinearArgs& a, int row, int n, float first, float second, const Added& added) {
    if (row >= a.rows || n >= a.outputs) return;
    first += added.bias[0];
    second += added.bias[1];
    if (a.gated) {
        a.results[0].at[(long long)row * a.results[0].stride + n / 2] = activate(a.results[0].activation, first) * second;
        return;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int output = n + i;
        if (output >= a.outputs) return;
        int s = 0;
        while (s + 1 < a.count && output >= a.results[s + 1].first) s++;
        const Results& to = a.results[s];
        float y = i == 0 ? first : second;
        if (to.activation != LINEAR) y = activate(to.activation, y);
        to.at[(long long)row * to.stride + output - to.first] = y + added.residual[i];
    }
}

__device__ __forceinline__ void finish(const LinearArgs& a, int row, int n, float first, float second) {
    Added added;
    fetch_bias(a, n, added);
    fetch_residual(a, row, n, added);
    finish(a, row, n, first, second, added);
}

// ------------------------------------------------------------------------------------------------------------ rows of a step

// A row that looks at keys: where its query is, where its result goes, its position, how many keys there are for it, and the first of
// their blocks. A row of no sequence has no keys.
struct Look {
    int row, out, position, keys, block;
};

// Heads in rows: the first one's first value in row 0, and floats from one row to the next.
struct Heads {
    const float* at;
    int stride;
};

// What is done to each query or key before it is used: a norm over its values, and turning by angles (cosines, then sines).
struct Preparation {
    NormArgs norm;
    const float* angles; // by row of the step, or null
    int pairs;
};

// Floats from one row of angles to the next.
__device__ __forceinline__ int angle_stride(int pairs) { return (2 * pairs + 3) / 4 * 4; }

// One head of a row, prepared by one warp into `to`, which all its lanes see afterwards.
__device__ __forceinline__ void prepare(const Preparation& p, const float* x, int d, int row, int lane, float* to) {
    float2 by = make_float2(0.0f, 1.0f);
    if (p.norm.kind != NO_NORM) by = statistics_of_head(x, d, p.norm, lane);
    for (int i = lane; i < d; i += WARP) to[i] = p.norm.kind != NO_NORM ? normalize(x[i], by, p.norm, i) : x[i];
    __syncwarp();
    if (p.angles) {
        const float* angles = p.angles + (long long)row * angle_stride(p.pairs);
        for (int i = lane; i < p.pairs; i += WARP) {
            float a = to[i], b = to[i + p.pairs], c = angles[i], s = angles[i + p.pairs];
            to[i] = a * c - b * s;
            to[i + p.pairs] = b * c + a * s;
        }
        __syncwarp();
    }
}

// Bytes from a block's start to the keys and to the values of the layer's first head, and from one head to the next. A head has
// sixteen rows of `d` values, keys and values alike.
struct CacheArgs {
    const u64* blocks;
    long long keys, values, head;
};

template <typename T> __device__ __forceinline__ T* keys_of(const CacheArgs& c, int block, int head) {
    return (T*)((unsigned char*)c.blocks[block] + c.keys + head * c.head);
}

template <typename T> __device__ __forceinline__ T* values_of(const CacheArgs& c, int block, int head) {
    return (T*)((unsigned char*)c.blocks[block] + c.values + head * c.head);
}
