// What happens to rows outside of products and attention: embeddings, angles, norms, copies.

struct EmbedArgs {
    const unsigned* ids;      // NO_TOKEN for a row whose embedding is given
    const int* positions;
    const int* is_long;       // whether the row's sequence is longer than the border of its rotary positions
    const void* table;        // vocabulary × width
    const float* given;       // embeddings by row of the step, or null
    const float* learned;     // a row for every position, or null
    const float* inverse;     // radians per position by pair, or null
    const float* inverse_long;
    float* out;
    float* angles;            // cosines, then sines
    float factor;
    int table_stride, width, out_stride, rows, pairs;
};

// Sine and cosine as the host computes them (rust/layers/rotary.rs): the library's take a stack for angles that no position has.
__device__ __forceinline__ double2 sine_and_cosine(double angle) {
    double quarters = rint(angle * 0.63661977236758138);
    double x = (angle - quarters * 1.5707963267341256) - quarters * 6.077100506506192e-11;
    double q = x * x;
    double s = -1.6666666666666632e-1
        + q * (8.33333333332249e-3 + q * (-1.984126982985795e-4 + q * (2.7557313707070068e-6
        + q * (-2.5050760253406863e-8 + q * 1.58969099521155e-10))));
    double c = 4.16666666666666e-2
        + q * (-1.388888888887411e-3 + q * (2.480158728947673e-5 + q * (-2.7557314351390663e-7
        + q * (2.087572321298175e-9 + q * -1.1359647557788195e-11))));
    double sine = x + x * q * s, cosine = 1.0 - 0.5 * q + q * q * c;
    switch ((int)quarters & 3) {
        case 0: return make_double2(sine, cosine);
        case 1: return make_double2(cosine, -sine);
        case 2: return make_double2(-sine, -cosine);
        default: return make_double2(-cosine, sine);
    }
}

template <typename T> __device__ __forceinline__ void embed(const EmbedArgs& a) {
    after_the_kernel_before();
    int row = blockIdx.x, position = a.positions[row];
    unsigned id = a.ids[row];
    const T* table = (const T*)a.table + (long long)(id == NO_TOKEN ? 0 : id) * a.table_stride;
    for (int i = threadIdx.x; i < a.width; i += blockDim.x) {
        float x = id == NO_TOKEN && a.given ? a.given[(long long)row * a.width + i] : widen(table[i]);
        if (a.learned) x += a.learned[(long long)position * a.width + i];
        a.out[(long long)row * a.out_stride + i] = x;
    }
    // The angle is a product in single precision, as transformers has it; its sine and cosine are rounded once.
    const float* inverse = a.is_long[row] && a.inverse_long ? a.inverse_long : a.inverse;
    for (int i = threadIdx.x; i < a.pairs; i += blockDim.x) {
        double angle = (double)((float)position * inverse[i]);
        float* angles = a.angles + (long long)row * angle_stride(a.pairs);
        double2 both = sine_and_cosine(angle);
        angles[i] = (float)both.y * a.factor;
        angles[i + a.pairs] = (float)both.x * a.factor;
    }
}

extern "C" __global__ void __launch_bounds__(128) fd_embed_f32(const EmbedArgs a) { embed<float>(a); }
extern "C" __global__ void __launch_bounds__(128) fd_embed_bf16(const EmbedArgs a) { embed<bf16>(a); }

struct NormRowsArgs {
    const float* x;
    float* out;
    NormArgs norm;
    int x_stride, out_stride, width, rows;
};

// A warp per row.
extern "C" __global__ void __launch_bounds__(128) fd_norm(const NormRowsArgs a) {
    after_the_kernel_before();
    int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= a.rows) return;
    const float* x = a.x + (long long)row * a.x_stride;
    float* out = a.out + (long long)row * a.out_stride;
    float2 by = statistics(x, a.width, a.norm, lane);
    for (int i = lane; i < a.width; i += WARP) out[i] = normalize(x[i], by, a.norm, i);
}

struct GatherArgs {
    const float* from;
    float* to;
    const int* wanted; // row of `from` by row of `to`
    int from_stride, to_stride, width, rows;
};

extern "C" __global__ void __launch_bounds__(128) fd_gather(const GatherArgs a) {
    after_the_kernel_before();
    const float* from = a.from + (long long)a.wanted[blockIdx.x] * a.from_stride;
    float* to = a.to + (long long)blockIdx.x * a.to_stride;
    for (int i = threadIdx.x; i < a.width; i += blockDim.x) to[i] = from[i];
}

// What the host declares (rust/cuda/args.rs).
static_assert(sizeof(EmbedArgs) == 104 && sizeof(NormRowsArgs) == 56 && sizeof(GatherArgs) == 40, "as the host has them");

#ifdef EMU
EMU_KERNEL(fd_embed_f32, EmbedArgs)
EMU_KERNEL(fd_embed_bf16, EmbedArgs)
EMU_KERNEL(fd_norm, NormRowsArgs)
EMU_KERNEL(fd_gather, GatherArgs)
#endif
