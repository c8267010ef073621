// Attention: keys and values go into the blocks of the cache, then every row looks at those of its sequence or source.

struct AppendArgs {
    const Look* looks;   // of every row; its position is that of its key
    CacheArgs cache;
    Heads keys, values;  // by row of the step
    Preparation prepare; // of keys
    int rows, heads, d;
};

// A warp per row and head.
template <typename T> __device__ __forceinline__ void append(const AppendArgs& a) {
    DYNAMIC_SHARED(shared); // a head for every warp
    after_the_kernel_before();
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int task = blockIdx.x * (blockDim.x / WARP) + warp, row = task / a.heads, head = task % a.heads;
    if (row >= a.rows) return;
    Look look = a.looks[row];
    if (look.keys == 0) return;
    float* key = (float*)shared + warp * a.d;
    prepare(a.prepare, a.keys.at + (long long)look.row * a.keys.stride + head * a.d, a.d, look.row, lane, key);
    const float* value = a.values.at + (long long)look.row * a.values.stride + head * a.d;
    int block = look.block + look.position / BLOCK, at = look.position % BLOCK * a.d;
    T* keys = keys_of<T>(a.cache, block, head) + at;
    T* values = values_of<T>(a.cache, block, head) + at;
    for (int i = lane; i < a.d; i += WARP) {
        keys[i] = narrow<T>(key[i]);
        values[i] = narrow<T>(value[i]);
    }
}

struct AttendArgs {
    const Look* looks;
    CacheArgs cache;
    Heads queries;       // by row of the step
    Preparation prepare; // of queries
    const float* bias;   // by head, a value per bucket; or null
    const unsigned* buckets; // by distance, the middle one that of no distance
    float* out;
    float* partial;      // of each row, head and chunk: a maximum, a sum, and a value for each of d
    unsigned* tickets;   // of each row and head; zero between kernels
    const int2* tiles;   // first row and number of rows of each tile
    float scale;
    int out_stride, rows, heads, group, d;
    int causal, window, reach, bucket_count;
    int chunks;          // that there is room for
};

struct Seen {
    int from, end;
};

__device__ __forceinline__ Seen seen(const AttendArgs& a, const Look& look) {
    if (!a.causal) return {0, look.keys};
    int end = min(look.position + 1, look.keys);
    return {a.window > 0 ? max(end - a.window, 0) : 0, end};
}

// Sixteen bytes of a head's row of keys or values, of which `left` values are there; zeros otherwise. With `WHOLE` all rows are made of whole
// sixteen bytes: then there is no branch, and many of these are under way at a time.
template <bool WHOLE> __device__ __forceinline__ uint4 piece(const float* at, int left) {
    if constexpr (WHOLE) {
        return left > 0 ? load(at) : make_uint4(0, 0, 0, 0);
    } else {
        float some[4];
#pragma unroll
        for (int i = 0; i < 4; i++) some[i] = i < left ? at[i] : 0.0f;
        return make_uint4(__float_as_uint(some[0]), __float_as_uint(some[1]), __float_as_uint(some[2]), __float_as_uint(some[3]));
    }
}

template <bool WHOLE> __device__ __forceinline__ uint4 piece(const bf16* at, int left) {
    if constexpr (WHOLE) {
        return left > 0 ? load(at) : make_uint4(0, 0, 0, 0);
    } else {
        unsigned some[8];
#pragma unroll
        for (int i = 0; i < 8; i++) some[i] = i < left ? at[i] : 0;
        return make_uint4(some[0] | some[1] << 16, some[2] | some[3] << 16, some[4] | some[5] << 16, some[6] | some[7] << 16);
    }
}

// What is added to a score.
__device__ __forceinline__ float bias_of(const AttendArgs& a, int head, int distance) {
    if (!a.bias) return 0.0f;
    int place = max(-a.reach, min(a.reach, distance)) + a.reach;
    return a.bias[head * a.bucket_count + a.buckets[place]];
}

// ---------------------------------------------------------------------------------------------- few rows of each sequence

#define CHUNK 256 // positions, counted from a sequence's first: which keys are summed together depends on nothing else
#define MOST_D 256

// How a block divides keys among its threads. Each lane of a group has sixteen bytes of a key, or two times sixteen of the widest; a group has as
// many lanes as a key needs. So a warp reads keys, and values, in whole lines, `AT_ONCE` of them at a time.
template <typename T> struct Share {
    enum {
        LENGTH = Vector<T>::LENGTH,
        PIECES = MOST_D / LENGTH > WARP ? MOST_D / LENGTH / WARP : 1,
        AT_ONCE = 4,
    };
    int lanes, groups, group, first; // of a group; of the block; this thread's, and the first of its values

    __device__ __forceinline__ Share(int d) {
        lanes = 1;
        while (lanes < WARP && lanes * LENGTH < d) lanes *= 2;
        groups = 4 * WARP / lanes;
        group = threadIdx.x / lanes;
        first = threadIdx.x % lanes * LENGTH;
    }
    // First of the values of a lane's piece.
    __device__ __forceinline__ int column(int piece) const { return first + piece * lanes * LENGTH; }
};

// Scores of keys from `from` to `end`, by key from `base` on. Returns the largest of this thread's.
template <typename T, bool WHOLE>
__device__ __forceinline__ float score(const AttendArgs& a, const Look& look, int head, const Share<T>& by, int base, int from, int end,
                                       const float* query, float* scores) {
    typedef Share<T> S;
    int of_keys = head / a.group, d = a.d;
    float mine[S::PIECES][S::LENGTH], top = -INFINITY;
#pragma unroll
    for (int p = 0; p < S::PIECES; p++) {
#pragma unroll
        for (int i = 0; i < S::LENGTH; i++) mine[p][i] = by.column(p) + i < d ? query[by.column(p) + i] : 0.0f;
    }
    for (int start = from + by.group; start - by.group < end; start += by.groups * S::AT_ONCE) {
        uint4 keys[S::AT_ONCE][S::PIECES];
        float products[S::AT_ONCE] = {};
#pragma unroll
        for (int u = 0; u < S::AT_ONCE; u++) {
            int key = min(start + u * by.groups, end - 1);
            const T* k = keys_of<T>(a.cache, look.block + key / BLOCK, of_keys) + key % BLOCK * d;
#pragma unroll
            for (int p = 0; p < S::PIECES; p++) keys[u][p] = piece<WHOLE>(k + by.column(p), d - by.column(p));
        }
#pragma unroll
        for (int u = 0; u < S::AT_ONCE; u++) {
#pragma unroll
            for (int p = 0; p < S::PIECES; p++) {
                float some[S::LENGTH];
                unpack(keys[u][p], some);
#pragma unroll
                for (int i = 0; i < S::LENGTH; i++) products[u] = fmaf(mine[p][i], some[i], products[u]);
            }
#pragma unroll
            for (int step = WARP / 2; step > 0; step /= 2) {
                float other = __shfl_xor_sync(0xFFFFFFFFu, products[u], step);
                products[u] += step < by.lanes ? other : 0.0f;
            }
        }
        if (by.first > 0) continue;
#pragma unroll
        for (int u = 0; u < S::AT_ONCE; u++) {
            int key = start + u * by.groups;
            if (key >= end) break;
            float score = products[u] * a.scale + bias_of(a, head, key - look.position);
            scores[key - base] = score;
            // What is no number must not be lost in a maximum.
            top = score > top || score != score ? score : top;
        }
    }
    return top;
}

// The weighted sum of values, whose parts of each warp go to `sums`.
template <typename T, bool WHOLE>
__device__ __forceinline__ void weigh(const AttendArgs& a, const Look& look, int head, const Share<T>& by, int base, int from, int end,
                                      const float* weights, float* sums) {
    typedef Share<T> S;
    int of_keys = head / a.group, d = a.d;
    float mine[S::PIECES][S::LENGTH] = {};
    for (int start = from + by.group; start - by.group < end; start += by.groups * S::AT_ONCE) {
        uint4 values[S::AT_ONCE][S::PIECES];
        float weight[S::AT_ONCE];
#pragma unroll
        for (int u = 0; u < S::AT_ONCE; u++) {
            int key = min(start + u * by.groups, end - 1);
            const T* v = values_of<T>(a.cache, look.block + key / BLOCK, of_keys) + key % BLOCK * d;
            weight[u] = weights[key - base];
#pragma unroll
            for (int p = 0; p < S::PIECES; p++) values[u][p] = piece<WHOLE>(v + by.column(p), d - by.column(p));
        }
#pragma unroll
        for (int u = 0; u < S::AT_ONCE; u++) {
            bool is_key = start + u * by.groups < end;
#pragma unroll
            for (int p = 0; p < S::PIECES; p++) {
                float some[S::LENGTH];
                unpack(values[u][p], some);
#pragma unroll
                for (int i = 0; i < S::LENGTH; i++) mine[p][i] = is_key ? fmaf(weight[u], some[i], mine[p][i]) : mine[p][i];
            }
        }
    }
#pragma unroll
    for (int p = 0; p < S::PIECES; p++) {
#pragma unroll
        for (int i = 0; i < S::LENGTH; i++) {
            float sum = mine[p][i];
#pragma unroll
            for (int step = 1; step < WARP; step *= 2) {
                float other = __shfl_xor_sync(0xFFFFFFFFu, sum, step);
                sum += step >= by.lanes ? other : 0.0f;
            }
            if ((int)threadIdx.x % WARP < by.lanes && by.column(p) + i < d) sums[by.column(p) + i] = sum;
        }
    }
}

// A block per row, head and chunk. Whoever ends last merges the row's chunks, first to last.
template <typename T> __device__ __forceinline__ void attend_rows(const AttendArgs& a) {
    __shared__ float query[MOST_D], scores[CHUNK], sums[4][MOST_D], tops[4], totals[4];
    __shared__ int last;
    after_the_kernel_before();
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Look look = a.looks[blockIdx.x];
    // A row of no sequence has no place of its own among the results, either.
    if (look.keys == 0) return;
    int head = blockIdx.y, d = a.d;
    Seen range = seen(a, look);
    float* out = a.out + (long long)look.out * a.out_stride + head * d;
    int first_chunk = range.from / CHUNK, chunks = (range.end + CHUNK - 1) / CHUNK - first_chunk;
    if ((int)blockIdx.z >= chunks) return;
    int base = (first_chunk + blockIdx.z) * CHUNK;
    int from = max(base, range.from), end = min(base + CHUNK, range.end);
    if (warp == 0) prepare(a.prepare, a.queries.at + (long long)look.row * a.queries.stride + head * d, d, look.row, lane, query);

    Share<T> by(d);
    bool whole = d % Share<T>::LENGTH == 0;
    __syncthreads();
    float top = whole ? score<T, true>(a, look, head, by, base, from, end, query, scores)
                      : score<T, false>(a, look, head, by, base, from, end, query, scores);
    top = warp_max(top);
    if (lane == 0) tops[warp] = top;
    __syncthreads();
    top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
    float total = 0.0f;
    for (int key = from + threadIdx.x; key < end; key += blockDim.x) {
        float weight = expf(scores[key - base] - top);
        scores[key - base] = weight;
        total += weight;
    }
    total = warp_sum(total);
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    total = ((totals[0] + totals[1]) + totals[2]) + totals[3];
    if (whole) {
        weigh<T, true>(a, look, head, by, base, from, end, scores, sums[warp]);
    } else {
        weigh<T, false>(a, look, head, by, base, from, end, scores, sums[warp]);
    }
    __syncthreads();
    int task = blockIdx.x * a.heads + head;
    float* partial = a.partial + (long long)task * a.chunks * (d + 2);
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = ((sums[0][i] + sums[1][i]) + sums[2][i]) + sums[3][i];
        if (chunks == 1) {
            out[i] = sum / total;
        } else {
            partial[blockIdx.z * (d + 2) + 2 + i] = sum;
        }
    }
    if (chunks == 1) return;
    if (threadIdx.x == 0) {
        partial[blockIdx.z * (d + 2)] = top;
        partial[blockIdx.z * (d + 2) + 1] = total;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(a.tickets + task, 1u) == (unsigned)chunks - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    const volatile float* all = partial;
    float most = -INFINITY;
    for (int c = 0; c < chunks; c++) {
        float of_chunk = all[c * (d + 2)];
        most = of_chunk > most || of_chunk != of_chunk ? of_chunk : most;
    }
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = 0.0f, weight = 0.0f;
        for (int c = 0; c < chunks; c++) {
            float by = expf(all[c * (d + 2)] - most);
            sum = fmaf(by, all[c * (d + 2) + 2 + i], sum);
            weight = fmaf(by, all[c * (d + 2) + 1], weight);
        }
        out[i] = sum / weight;
    }
    if (threadIdx.x == 0) a.tickets[task] = 0;
}

// --------------------------------------------------------------------------------------------- many rows of each sequence

#define TILE_ROWS 16

// A block of 128 threads per tile of up to sixteen rows of one sequence and head. It goes over the keys that any of the rows sees, a
// block of the cache at a time. Eight threads share a row: each has two of a block's keys, and four neighbouring columns of 32. Rows in shared
// memory are padded to fours of floats, which a thread reads at once, with zeros.
template <typename T> __device__ __forceinline__ void attend_tile(const AttendArgs& a) {
    constexpr int LENGTH = Vector<T>::LENGTH;
    after_the_kernel_before();
    DYNAMIC_SHARED(shared); // queries, keys (four floats more per row, against conflicts of banks), values, weights
    int d = a.d, line = (d + 3) / 4 * 4, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float* queries = (float*)shared;
    float* keys = queries + TILE_ROWS * line;
    float* values = keys + BLOCK * (line + 4);
    float* weights = values + BLOCK * line;
    __shared__ int ends[2];
    int2 tile = a.tiles[blockIdx.x];
    int head = blockIdx.y, of_keys = head / a.group;
    for (int r = warp; r < tile.y; r += 4) {
        int row = a.looks[tile.x + r].row;
        prepare(a.prepare, a.queries.at + (long long)row * a.queries.stride + head * d, d, row, lane, queries + r * line);
        if (d + lane < line) queries[r * line + d + lane] = 0.0f;
    }
    int mine = threadIdx.x / 8, within = threadIdx.x % 8;
    bool there = mine < tile.y, whole = d % LENGTH == 0;
    Look look = a.looks[tile.x + (there ? mine : 0)];
    Seen range = seen(a, look);
    if (threadIdx.x == 0) {
        // Rows of a tile follow each other, so the first sees the first key and the last the last one.
        ends[0] = range.from;
        ends[1] = seen(a, a.looks[tile.x + tile.y - 1]).end;
    }
    __syncthreads();
    int end = ends[1], pieces = (line + LENGTH - 1) / LENGTH;
    float top = -INFINITY, total = 0.0f;
    float sums[MOST_D / 32][4] = {};
    for (int start = ends[0] / BLOCK * BLOCK; start < end; start += BLOCK) {
        __syncthreads();
        const T* k = keys_of<T>(a.cache, look.block + start / BLOCK, of_keys);
        const T* v = values_of<T>(a.cache, look.block + start / BLOCK, of_keys);
        for (int i = threadIdx.x; i < BLOCK * pieces; i += blockDim.x) {
            int key = i / pieces, column = i % pieces * LENGTH;
            // What lies past the last key was never written.
            int left = start + key < end ? d - column : 0;
            float of_key[LENGTH], of_value[LENGTH];
            unpack(whole ? piece<true>(k + key * d + column, left) : piece<false>(k + key * d + column, left), of_key);
            unpack(whole ? piece<true>(v + key * d + column, left) : piece<false>(v + key * d + column, left), of_value);
#pragma unroll
            for (int j = 0; j < LENGTH; j += 4) {
                if (column + j >= line) break;
                *(float4*)(keys + key * (line + 4) + column + j) = make_float4(of_key[j], of_key[j + 1], of_key[j + 2], of_key[j + 3]);
                *(float4*)(values + key * line + column + j) = make_float4(of_value[j], of_value[j + 1], of_value[j + 2], of_value[j + 3]);
            }
        }
        __syncthreads();
        float scores[2] = {}, most = top;
#pragma unroll 4
        for (int i = 0; i < line; i += 4) {
            float4 q = *(const float4*)(queries + mine * line + i);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float4 key = *(const float4*)(keys + (within + j * 8) * (line + 4) + i);
                scores[j] = fmaf(q.x, key.x, scores[j]);
                scores[j] = fmaf(q.y, key.y, scores[j]);
                scores[j] = fmaf(q.z, key.z, scores[j]);
                scores[j] = fmaf(q.w, key.w, scores[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int key = start + within + j * 8;
            float score = scores[j] * a.scale + bias_of(a, head, key - look.position);
            bool sees = there && key >= range.from && key < range.end;
            scores[j] = sees ? score : -INFINITY;
            most = scores[j] > most || scores[j] != scores[j] ? scores[j] : most;
        }
#pragma unroll
        for (int step = 4; step > 0; step /= 2) {
            float other = __shfl_xor_sync(0xFFFFFFFFu, most, step);
            most = other > most || other != other ? other : most;
        }
        // A row that has seen nothing yet has no maximum to go by.
        float shift = most == -INFINITY ? 0.0f : most, keep = expf(top - shift), of_block = 0.0f;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float weight = expf(scores[j] - shift);
            weights[mine * BLOCK + within + j * 8] = weight;
            of_block += weight;
        }
#pragma unroll
        for (int step = 4; step > 0; step /= 2) of_block += __shfl_xor_sync(0xFFFFFFFFu, of_block, step);
        total = total * keep + of_block;
        top = most;
        __syncwarp();
        // Where a row does not see all of a block's keys, the values of others are left out: they may be no numbers.
        if (start < range.from || start + BLOCK > range.end) {
            int first = max(range.from - start, 0), last = there ? min(range.end - start, BLOCK) : 0;
#pragma unroll
            for (int i = 0; i < MOST_D / 32; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int column = within * 4 + i * 32 + j;
                    float sum = sums[i][j] * keep;
                    if (column < line) {
                        for (int key = first; key < last; key++) sum = fmaf(weights[mine * BLOCK + key], values[key * line + column], sum);
                    }
                    sums[i][j] = sum;
                }
            }
            continue;
        }
        float by[BLOCK];
#pragma unroll
        for (int key = 0; key < BLOCK; key += 4) {
            float4 four = *(const float4*)(weights + mine * BLOCK + key);
            by[key] = four.x;
            by[key + 1] = four.y;
            by[key + 2] = four.z;
            by[key + 3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < MOST_D / 32; i++) {
            int column = within * 4 + i * 32;
            if (column >= line) break;
            float4 sum = make_float4(sums[i][0] * keep, sums[i][1] * keep, sums[i][2] * keep, sums[i][3] * keep);
#pragma unroll
            for (int key = 0; key < BLOCK; key++) {
                float4 value = *(const float4*)(values + key * line + column);
                sum.x = fmaf(by[key], value.x, sum.x);
                sum.y = fmaf(by[key], value.y, sum.y);
                sum.z = fmaf(by[key], value.z, sum.z);
                sum.w = fmaf(by[key], value.w, sum.w);
            }
            sums[i][0] = sum.x;
            sums[i][1] = sum.y;
            sums[i][2] = sum.z;
            sums[i][3] = sum.w;
        }
    }
    if (!there) return;
    float* out = a.out + (long long)look.out * a.out_stride + head * d;
    float share = 1.0f / total;
#pragma unroll
    for (int i = 0; i < MOST_D / 32; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int column = within * 4 + i * 32 + j;
            if (column < d) out[column] = sums[i][j] * share;
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) fd_append_f32(const AppendArgs a) { append<float>(a); }
extern "C" __global__ void __launch_bounds__(128) fd_append_bf16(const AppendArgs a) { append<bf16>(a); }
extern "C" __global__ void __launch_bounds__(128, 5) fd_attend_rows_f32(const AttendArgs a) { attend_rows<float>(a); }
extern "C" __global__ void __launch_bounds__(128, 5) fd_attend_rows_bf16(const AttendArgs a) { attend_rows<bf16>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) fd_attend_tile_f32(const AttendArgs a) { attend_tile<float>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) fd_attend_tile_bf16(const AttendArgs a) { attend_tile<bf16>(a); }

// What the host declares (rust/cuda/args.rs).
static_assert(sizeof(Look) == 20 && sizeof(Heads) == 16 && sizeof(Preparation) == 40, "as the host has them");
static_assert(sizeof(CacheArgs) == 32 && sizeof(AppendArgs) == 128 && sizeof(AttendArgs) == 192, "as the host has them");

#ifdef EMU
EMU_KERNEL(fd_append_f32, AppendArgs)
EMU_KERNEL(fd_append_bf16, AppendArgs)
EMU_KERNEL(fd_attend_rows_f32, AttendArgs)
EMU_KERNEL(fd_attend_rows_bf16, AttendArgs)
EMU_KERNEL(fd_attend_tile_f32, AttendArgs)
EMU_KERNEL(fd_attend_tile_bf16, AttendArgs)
#endif
