// Tries of the emulator: what lanes of a warp do together. Every result is a thread's own word.

struct LanesArgs {
    const unsigned* in;
    unsigned* out;
    int width, by;
};

// The four shuffles, and a ballot, of one word per lane: five results behind each other.
extern "C" __global__ void try_shuffles(const LanesArgs a) {
    unsigned thread = threadIdx.x, n = blockDim.x, value = a.in[thread];
    a.out[thread] = __shfl_sync(0xffffffffu, value, a.by, a.width);
    a.out[n + thread] = __shfl_xor_sync(0xffffffffu, value, a.by, a.width);
    a.out[2 * n + thread] = __shfl_down_sync(0xffffffffu, value, a.by, a.width);
    a.out[3 * n + thread] = __shfl_up_sync(0xffffffffu, value, a.by, a.width);
    a.out[4 * n + thread] = __ballot_sync(0xffffffffu, value & 1u);
}

// Values of eight bytes, and of float.
extern "C" __global__ void try_wide(const LanesArgs a) {
    unsigned long long wide = (unsigned long long)a.in[threadIdx.x] << 32 | threadIdx.x;
    wide = __shfl_xor_sync(0xffffffffu, wide, 1);
    float x = __shfl_down_sync(0xffffffffu, __uint_as_float(a.in[threadIdx.x]), 1);
    a.out[threadIdx.x] = (unsigned)(wide >> 32) ^ (unsigned)wide;
    a.out[blockDim.x + threadIdx.x] = __float_as_uint(x);
}

struct ProductArgs {
    const unsigned short *a, *b; // 16 x 16 by rows, 16 x 8 by columns (so 8 x 16 by rows), of each warp
    float* c;                    // 16 x 8 by rows, added to
};

// Tensor product with fragments loaded as the PTX ISA lays them, by its formulas for rows and columns of element i.
extern "C" __global__ void try_product(const ProductArgs p) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned short *left = p.a + warp * 256, *right = p.b + warp * 128;
    float* product = p.c + warp * 128;
    int group = lane >> 2, in_group = lane % 4;
    unsigned a[4] = {}, b[2] = {};
    float c[4];
    for (int i = 0; i < 8; i++) {
        int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
        a[i / 2] |= (unsigned)left[row * 16 + column] << (16 * (i & 1));
    }
    for (int i = 0; i < 4; i++) {
        int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
        b[i / 2] |= (unsigned)right[group * 16 + row] << (16 * (i & 1));
    }
    for (int i = 0; i < 4; i++) c[i] = product[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
    emu_mma_bf16(c, a, b);
    for (int i = 0; i < 4; i++) product[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = c[i];
}

struct MatrixArgs {
    const float *w, *x;
    float* y;
    int outputs, inputs;
};

// A matrix times a vector, a warp for every output.
extern "C" __global__ void try_matrix(const MatrixArgs a) {
    int output = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = 0.0f;
    if (output < a.outputs)
        for (int i = lane; i < a.inputs; i += 32) sum = fmaf(a.w[output * a.inputs + i], a.x[i], sum);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (output < a.outputs && lane == 0) a.y[output] = sum;
}

EMU_KERNEL(try_shuffles, LanesArgs)
EMU_KERNEL(try_wide, LanesArgs)
EMU_KERNEL(try_product, ProductArgs)
EMU_KERNEL(try_matrix, MatrixArgs)
