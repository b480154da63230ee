// Training kernels for AVX-512 hosts: banded attention with sinks, and the element-wise parts of the experts.
// Built by fast.py on first use; torch does the same work, slower, where this cannot be built.
// Matrices are row-major; "flat" tensors hold the tokens of all groups: prefix, rows, prefix, rows, ...
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

namespace {

using bf16 = uint16_t;
constexpr int D = 64;     // head_dim
constexpr int TILE = 36;  // query rows of a tile, a multiple of the micro-kernel's six

inline __m512 load(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline void store(bf16* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }

inline __m512 exp_ps(__m512 x) {  // relative error about 1e-6; far below zero gives 0
  x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.f)), _mm512_set1_ps(-87.f));
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147181f), x);
  __m512 p = _mm512_set1_ps(1.f / 720);
  for (float c : {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

// C[MR, 16 NV] (+)= A[MR, K] B[K, 16 NV]; A by any strides, so a transposed A costs nothing.
template <int MR, int NV>
inline void micro(int K, const float* A, int ra, int ca, const float* B, int ldb, float* C, int ldc, bool add) {
  __m512 c[MR][NV];
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) c[m][v] = add ? _mm512_loadu_ps(C + m * ldc + 16 * v) : _mm512_setzero_ps();
  for (int k = 0; k < K; k++) {
    __m512 b[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) b[v] = _mm512_loadu_ps(B + (long)k * ldb + 16 * v);
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++) {
      __m512 a = _mm512_set1_ps(A[(long)m * ra + (long)k * ca]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) c[m][v] = _mm512_fmadd_ps(a, b[v], c[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) _mm512_storeu_ps(C + m * ldc + 16 * v, c[m][v]);
}

template <int NV>
void panel(int M, int K, const float* A, int ra, int ca, const float* B, int ldb, float* C, int ldc, bool add) {
  int m = 0;
  for (; m + 6 <= M; m += 6) micro<6, NV>(K, A + (long)m * ra, ra, ca, B, ldb, C + (long)m * ldc, ldc, add);
  for (; m < M; m++) micro<1, NV>(K, A + (long)m * ra, ra, ca, B, ldb, C + (long)m * ldc, ldc, add);
}

// N must be a multiple of 16.
void gemm(int M, int N, int K, const float* A, int ra, int ca, const float* B, int ldb, float* C, int ldc, bool add) {
  int n = 0;
  for (; n + 64 <= N; n += 64) panel<4>(M, K, A, ra, ca, B + n, ldb, C + n, ldc, add);
  for (; n < N; n += 16) panel<1>(M, K, A, ra, ca, B + n, ldb, C + n, ldc, add);
}

void rotate(const bf16* x, const float* cos, const float* sin, float scale, float* y) {
  for (int i = 0; i < 32; i += 16) {
    __m512 a = load(x + i), b = load(x + 32 + i), s = _mm512_set1_ps(scale);
    __m512 c = _mm512_mul_ps(_mm512_loadu_ps(cos + i), s), d = _mm512_mul_ps(_mm512_loadu_ps(sin + i), s);
    _mm512_storeu_ps(y + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, d)));
    _mm512_storeu_ps(y + 32 + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, d)));
  }
}

void rotate_back(const float* y, const float* cos, const float* sin, float scale, bf16* x) {
  for (int i = 0; i < 32; i += 16) {
    __m512 a = _mm512_loadu_ps(y + i), b = _mm512_loadu_ps(y + 32 + i), s = _mm512_set1_ps(scale);
    __m512 c = _mm512_mul_ps(_mm512_loadu_ps(cos + i), s), d = _mm512_mul_ps(_mm512_loadu_ps(sin + i), s);
    store(x + i, _mm512_fmadd_ps(a, c, _mm512_mul_ps(b, d)));
    store(x + 32 + i, _mm512_fmsub_ps(b, c, _mm512_mul_ps(a, d)));
  }
}

struct Shape {
  int heads, kv_heads, window;  // window 0: full
  int width() const { return (heads + 2 * kv_heads) * D; }
};

// One sequence of a group for one kv head: keys = the last `keep` of the prefix and the row's own tokens.
struct Sequence {
  long first;             // flat index of query 0
  long prefix;            // flat index of the first kept prefix token
  int keep, queries, at;  // at: position of query 0
  int keys() const { return keep + queries; }
  int padded() const { return (keys() + 15) / 16 * 16; }
  long flat(int key) const { return key < keep ? prefix + key : first + key - keep; }
  int position(int key) const { return at - keep + key; }
};

struct Work {
  std::vector<float> k, v, kt, vt, q, s, p, o, dq, dk, dv, go;
  void load_keys(const Shape& h, const Sequence& x, int kv, const bf16* qkv, const float* cos, const float* sin,
                 bool back) {
    int n = x.padded();
    k.assign((size_t)n * D, 0), v.assign((size_t)n * D, 0), kt.resize((size_t)n * D);
    for (int j = 0; j < x.keys(); j++) {
      const bf16* row = qkv + x.flat(j) * h.width();
      rotate(row + (h.heads + kv) * D, cos + x.position(j) * 32, sin + x.position(j) * 32, 1.f, &k[(size_t)j * D]);
      for (int i = 0; i < D; i += 16)
        _mm512_storeu_ps(&v[(size_t)j * D + i], load(row + (h.heads + h.kv_heads + kv) * D + i));
    }
    transpose(k, kt, n);
    if (back) vt.resize((size_t)n * D), transpose(v, vt, n);
    s.resize((size_t)TILE * n), p.resize((size_t)TILE * n), q.resize(TILE * D), o.resize(TILE * D);
  }
  static void transpose(const std::vector<float>& a, std::vector<float>& t, int n) {
    for (int j = 0; j < n; j++)
      for (int i = 0; i < D; i++) t[(size_t)i * n + j] = a[(size_t)j * D + i];
  }
};

// Keys that some query of [i, i + n) sees, widened to multiples of 16.
void range(const Shape& h, const Sequence& x, int i, int n, int& lo, int& hi) {
  hi = std::min(x.padded(), (x.keep + i + n + 15) / 16 * 16);
  lo = h.window ? std::max(0, x.keep + i - h.window + 1) / 16 * 16 : 0;
}

void mask(const Shape& h, const Sequence& x, int i, int lo, int hi, float* s) {
  int last = x.keep + i, first = h.window ? last - h.window + 1 : 0;
  for (int j = lo; j < hi; j++)
    if (j > last || j < first) s[j - lo] = -1e30f;
}

Sequence sequence(const Shape& h, const int64_t* g, int b) {
  long start = g[0];
  int P = g[1], T = g[3];
  if (b < 0) return {start, start, 0, P, 0};
  int keep = h.window ? std::min(P, h.window - 1) : P;
  return {start + P + (long)b * T, start + P - keep, keep, T, P};
}

}  // namespace

extern "C" {

// groups [n, 4]: flat start, prefix length, rows, row length. qkv flat bf16 [N, (H + 2 KV) 64], out bf16 [N, H 64], lse
// [N, H].
void attention_forward(const bf16* qkv, bf16* out, float* lse, const float* sinks, const float* cos, const float* sin,
                       int n, const int64_t* groups, int heads, int kv_heads, int window) {
  Shape h{heads, kv_heads, window};
  for (int g = 0; g < n; g++) {
    const int64_t* G = groups + 4 * g;
    int tasks = (int)(G[2] + 1) * kv_heads;
#pragma omp parallel
    {
      Work w;
#pragma omp for schedule(dynamic, 1)
      for (int task = 0; task < tasks; task++) {
        int kv = task % kv_heads, ratio = heads / kv_heads;
        Sequence x = sequence(h, G, task / kv_heads - 1);
        w.load_keys(h, x, kv, qkv, cos, sin, false);
        int keys = x.padded();
        for (int head = kv * ratio; head < (kv + 1) * ratio; head++)
          for (int i = 0; i < x.queries; i += TILE) {
            int rows = std::min(TILE, x.queries - i), lo, hi;
            float share[TILE];  // exp(maximum - lse)
            range(h, x, i, rows, lo, hi);
            for (int r = 0; r < rows; r++)
              rotate(qkv + (x.first + i + r) * h.width() + head * D, cos + (x.at + i + r) * 32,
                     sin + (x.at + i + r) * 32, 0.125f, &w.q[r * D]);
            gemm(rows, hi - lo, D, w.q.data(), D, 1, w.kt.data() + lo, keys, w.s.data(), keys, false);
            for (int r = 0; r < rows; r++) {
              float* s = &w.s[(size_t)r * keys];
              mask(h, x, i + r, lo, hi, s);
              __m512 top = _mm512_set1_ps(sinks[head]);
              for (int j = 0; j < hi - lo; j += 16) top = _mm512_max_ps(top, _mm512_loadu_ps(s + j));
              float m = _mm512_reduce_max_ps(top);
              __m512 sum = _mm512_setzero_ps(), mv = _mm512_set1_ps(m);
              for (int j = 0; j < hi - lo; j += 16) {
                __m512 e = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(s + j), mv));
                _mm512_storeu_ps(s + j, e);
                sum = _mm512_add_ps(sum, e);
              }
              float total = _mm512_reduce_add_ps(sum) + expf(sinks[head] - m);
              lse[(x.first + i + r) * heads + head] = m + logf(total);
              share[r] = 1.f / total;
            }
            gemm(rows, D, hi - lo, w.s.data(), keys, 1, w.v.data() + (size_t)lo * D, D, w.o.data(), D, false);
            for (int r = 0; r < rows; r++) {
              __m512 scale = _mm512_set1_ps(share[r]);
              for (int d = 0; d < D; d += 16)
                store(out + (x.first + i + r) * heads * D + head * D + d,
                      _mm512_mul_ps(_mm512_loadu_ps(&w.o[r * D + d]), scale));
            }
          }
      }
    }
  }
}

// dqkv like qkv; dsinks [H] is added to.
void attention_backward(const bf16* qkv, const bf16* out, const float* lse, const float* sinks, const float* cos,
                        const float* sin, const bf16* dout, bf16* dqkv, float* dsinks, int n, const int64_t* groups,
                        int heads, int kv_heads, int window) {
  Shape h{heads, kv_heads, window};
  for (int g = 0; g < n; g++) {
    const int64_t* G = groups + 4 * g;
    int tasks = (int)(G[2] + 1) * kv_heads, P = (int)G[1];
    size_t shared = (size_t)P * kv_heads * 2 * D;
    std::vector<float> total(shared, 0.f);
#pragma omp parallel
    {
      Work w;
      std::vector<float> mine(shared, 0.f), ds(heads, 0.f);
#pragma omp for schedule(dynamic, 1)
      for (int task = 0; task < tasks; task++) {
        int kv = task % kv_heads, ratio = heads / kv_heads;
        Sequence x = sequence(h, G, task / kv_heads - 1);
        w.load_keys(h, x, kv, qkv, cos, sin, true);
        int keys = x.padded();
        w.dk.assign((size_t)keys * D, 0), w.dv.assign((size_t)keys * D, 0), w.go.resize(TILE * D);
        for (int head = kv * ratio; head < (kv + 1) * ratio; head++)
          for (int i = 0; i < x.queries; i += TILE) {
            int rows = std::min(TILE, x.queries - i), lo, hi;
            range(h, x, i, rows, lo, hi);
            int span = hi - lo;
            for (int r = 0; r < rows; r++) {
              long t = x.first + i + r;
              rotate(qkv + t * h.width() + head * D, cos + (x.at + i + r) * 32, sin + (x.at + i + r) * 32, 0.125f,
                     &w.q[r * D]);
              for (int d = 0; d < D; d += 16)
                _mm512_storeu_ps(&w.go[r * D + d], load(dout + t * heads * D + head * D + d));
            }
            gemm(rows, span, D, w.q.data(), D, 1, w.kt.data() + lo, keys, w.p.data(), keys, false);
            gemm(rows, span, D, w.go.data(), D, 1, w.vt.data() + lo, keys, w.s.data(), keys, false);
            for (int r = 0; r < rows; r++) {
              long t = x.first + i + r;
              float *p = &w.p[(size_t)r * keys], *s = &w.s[(size_t)r * keys], l = lse[t * heads + head];
              mask(h, x, i + r, lo, hi, p);
              __m512 dot = _mm512_setzero_ps();
              for (int d = 0; d < D; d += 16)
                dot = _mm512_fmadd_ps(_mm512_loadu_ps(&w.go[r * D + d]), load(out + t * heads * D + head * D + d), dot);
              float inner = _mm512_reduce_add_ps(dot);
              ds[head] -= expf(sinks[head] - l) * inner;
              for (int j = 0; j < span; j += 16) {
                __m512 e = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(p + j), _mm512_set1_ps(l)));
                _mm512_storeu_ps(p + j, e);
                _mm512_storeu_ps(s + j, _mm512_mul_ps(e, _mm512_sub_ps(_mm512_loadu_ps(s + j), _mm512_set1_ps(inner))));
              }
            }
            gemm(rows, D, span, w.s.data(), keys, 1, w.k.data() + (size_t)lo * D, D, w.o.data(), D, false);
            for (int r = 0; r < rows; r++)
              rotate_back(&w.o[r * D], cos + (x.at + i + r) * 32, sin + (x.at + i + r) * 32, 0.125f,
                          dqkv + (x.first + i + r) * h.width() + head * D);
            gemm(span, D, rows, w.s.data(), 1, keys, w.q.data(), D, w.dk.data() + (size_t)lo * D, D, true);
            gemm(span, D, rows, w.p.data(), 1, keys, w.go.data(), D, w.dv.data() + (size_t)lo * D, D, true);
          }
        bool own = task < kv_heads;  // the prefix on itself
        for (int j = 0; j < x.keys(); j++) {
          const float *dk = &w.dk[(size_t)j * D], *dv = &w.dv[(size_t)j * D];
          if (own || j < x.keep) {
            float* to = &mine[((size_t)x.position(j) * kv_heads + kv) * 2 * D];
            for (int d = 0; d < D; d++) to[d] += dk[d], to[D + d] += dv[d];
          } else {
            bf16* row = dqkv + x.flat(j) * h.width();
            rotate_back(dk, cos + x.position(j) * 32, sin + x.position(j) * 32, 1.f, row + (heads + kv) * D);
            for (int d = 0; d < D; d += 16) store(row + (heads + kv_heads + kv) * D + d, _mm512_loadu_ps(dv + d));
          }
        }
      }
#pragma omp critical
      {
        for (size_t i = 0; i < shared; i++) total[i] += mine[i];
        for (int i = 0; i < heads; i++) dsinks[i] += ds[i];
      }
    }
    for (int p = 0; p < P; p++)
      for (int kv = 0; kv < kv_heads; kv++) {
        const float* from = &total[((size_t)p * kv_heads + kv) * 2 * D];
        bf16* row = dqkv + (G[0] + p) * h.width();
        rotate_back(from, cos + p * 32, sin + p * 32, 1.f, row + (heads + kv) * D);
        for (int d = 0; d < D; d += 16) store(row + (heads + kv_heads + kv) * D + d, _mm512_loadu_ps(from + D + d));
      }
  }
}

// gu bf16 [n, 2 I] (gate, up) -> act bf16 [n, I]
void swiglu_forward(const bf16* gu, bf16* act, long n, int I) {
#pragma omp parallel for
  for (long r = 0; r < n; r++)
    for (int i = 0; i < I; i += 16) {
      __m512 g = _mm512_min_ps(load(gu + r * 2 * I + i), _mm512_set1_ps(7.f));
      __m512 u = _mm512_max_ps(_mm512_min_ps(load(gu + r * 2 * I + I + i), _mm512_set1_ps(7.f)), _mm512_set1_ps(-7.f));
      __m512 one = _mm512_set1_ps(1.f), e = exp_ps(_mm512_mul_ps(g, _mm512_set1_ps(-1.702f)));
      store(act + r * I + i, _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), _mm512_add_ps(u, one)));
    }
}

void swiglu_backward(const bf16* gu, const bf16* dact, bf16* dgu, long n, int I) {
#pragma omp parallel for
  for (long r = 0; r < n; r++)
    for (int i = 0; i < I; i += 16) {
      __m512 g0 = load(gu + r * 2 * I + i), u0 = load(gu + r * 2 * I + I + i), d = load(dact + r * I + i);
      __m512 seven = _mm512_set1_ps(7.f), one = _mm512_set1_ps(1.f), a = _mm512_set1_ps(1.702f);
      __m512 g = _mm512_min_ps(g0, seven), u = _mm512_max_ps(_mm512_min_ps(u0, seven), _mm512_set1_ps(-7.f));
      __m512 s = _mm512_div_ps(one, _mm512_add_ps(one, exp_ps(_mm512_mul_ps(g, _mm512_set1_ps(-1.702f)))));
      __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(a, _mm512_mul_ps(g, s)), _mm512_sub_ps(one, s), s);
      __m512 dg = _mm512_mul_ps(_mm512_mul_ps(d, _mm512_add_ps(u, one)), slope),
             du = _mm512_mul_ps(d, _mm512_mul_ps(g, s));
      store(dgu + r * 2 * I + i, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(g0, seven, _CMP_LE_OQ), dg));
      store(dgu + r * 2 * I + I + i, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(_mm512_abs_ps(u0), seven, _CMP_LE_OQ), du));
    }
}

// out[row[i]] += weight[i] * y[i]; weight may be null. Rows differ within a call. H a multiple of 16.
void scatter_add(float* out, const bf16* y, const int64_t* row, const float* weight, long n, int H) {
#pragma omp parallel for
  for (long r = 0; r < n; r++) {
    __m512 w = _mm512_set1_ps(weight ? weight[r] : 1.f);
    for (int i = 0; i < H; i += 16) {
      float* to = out + row[r] * H + i;
      _mm512_storeu_ps(to, _mm512_fmadd_ps(load(y + r * H + i), w, _mm512_loadu_ps(to)));
    }
  }
}

// dy[i] = weight[i] * grad[row[i]], dweight[i] = <grad[row[i]], y[i]>
void combine_backward(const float* grad, const bf16* y, const int64_t* row, const float* weight, bf16* dy,
                      float* dweight, long n, int H) {
#pragma omp parallel for
  for (long r = 0; r < n; r++) {
    __m512 w = _mm512_set1_ps(weight[r]), sum = _mm512_setzero_ps();
    for (int i = 0; i < H; i += 16) {
      __m512 g = _mm512_loadu_ps(grad + row[r] * H + i);
      sum = _mm512_fmadd_ps(g, load(y + r * H + i), sum);
      store(dy + r * H + i, _mm512_mul_ps(g, w));
    }
    dweight[r] = _mm512_reduce_add_ps(sum);
  }
}
}
