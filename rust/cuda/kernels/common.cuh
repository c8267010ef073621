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
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (bf16)((bits >> 16) | 0x40u);
    return (bf16)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return to_bf16(x); }

// Two values side by side in a word, the first in the lower half.
__device__ __forceinline__ unsigned pair(float low, float high) {
    return (unsigned)to_bf16(low) | (unsigned)to_bf16(high) << 16;
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
    const float* weight;
    const float* bias; // of layer norms
    float eps;
    int kind;
};

// Mean and reciprocal deviation of a row, by one warp; every lane gets them. An rms norm has no mean.
__device__ __forceinline__ float2 statistics(const float* x, int n, const NormArgs& norm, int lane) {
    float mean = 0.0f;
    if (norm.kind == LAYER_NORM) {
        float sum = 0.0f;
        for (int i = lane; i < n; i += WARP) sum += x[i];
        mean = warp_sum(sum) / n;
    }
    float square = 0.0f;
    for (int i = lane; i < n; i += WARP) {
        float d = x[i] - mean;
        square = fmaf(d, d, square);
    }
    return make_float2(mean, 1.0f / sqrtf(warp_sum(square) / n + norm.eps));
}

__device__ __forceinline__ float normalize(float x, float2 by, const NormArgs& norm, int column) {
    float y = (x - by.x) * by.y * norm.weight[column];
    return norm.kind == LAYER_NORM ? y + norm.bias[column] : y;
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

// Finishes output `n` and its neighbour, which is even and odd, of a row.
__device__ __forceinline__ void finish(const LinearArgs& a, int row, int n, float first, float second) {
    if (row >= a.rows || n >= a.outputs) return;
    if (a.bias) {
        first += a.bias[n];
        if (n + 1 < a.outputs) second += a.bias[n + 1];
    }
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
        if (a.residual) y += a.residual[(long long)row * a.residual_stride + output];
        to.at[(long long)row * to.stride + output - to.first] = y;
    }
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
    if (p.norm.kind != NO_NORM) by = statistics(x, d, p.norm, lane);
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
