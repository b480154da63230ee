// simt_ops OP SEED SCHEDULES    runs one of the ops on random inputs of a small random shape, under several
//                               schedules: no sanitizer may complain, and every schedule must give the same bits.
// Without arguments it lists the ops. That the bits are right is what tests/ops is for.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <numeric>
#include <random>

#include "core/philox.h"
#include "cuda/layout.h"
#include "cuda/make_backend.h"
#include "trial.h"

namespace {

using namespace gptoss;

// Sequences of random context, their newest tokens as rows, pages dealt at random; what nobody may read is NaN, and
// pages that the window has left are given back.
struct Context {
  Batch batch;
  KvLayer cache;
};

Context context(Trial& t, int kv_heads, int window, bool cache_is_written) {
  const int decoded = t.between(0, 2), sequences = std::max(1, decoded + t.between(0, 2));
  const int page_size = 16 * t.between(1, 4);
  std::vector<int32_t> row_start{0}, owner, position, length;
  for (int s = 0; s < sequences; ++s) {
    const int most = s > decoded ? 5 : cache_is_written && t.chance(0.2) ? 220 : 40;
    const int rows = s < decoded ? 1 : t.between(2, most);
    length.push_back(rows + (t.chance(0.3) ? t.between(200, 600) : t.between(0, 60)));
    for (int i = 0; i < rows; ++i) owner.push_back(s), position.push_back(length.back() - rows + i);
    row_start.push_back(static_cast<int32_t>(owner.size()));
  }
  const int longest = *std::max_element(length.begin(), length.end());
  const int stride = (longest + page_size - 1) / page_size + t.between(0, 2), pages = sequences * stride;
  std::vector<int32_t> table(pages);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), t.generator());

  const size_t page = size_t(kv_heads) * page_size * kHeadDim;
  std::vector<bf16> keys(pages * page, bf16{0x7fc1}), values = keys;
  for (int s = 0; s < sequences; ++s) {
    const int oldest = window == 0 ? 0 : std::max(0, position[row_start[s]] - window + 1);
    for (int i = 0; i < stride; ++i)
      if ((i + 1) * page_size <= oldest || i * page_size >= length[s]) table[s * stride + i] = -1;
    for (int at = oldest; at < length[s]; ++at)
      for (int kv = 0; kv < kv_heads; ++kv)
        for (int d = 0; d < kHeadDim; ++d) {
          const size_t head = table[s * stride + at / page_size] * page + size_t(kv) * page_size * kHeadDim;
          const int slot = at % page_size;
          keys[head + slot * kHeadDim + d] = to_bf16(t.normal());
          values[head + d * page_size + slot] = to_bf16(t.normal());
        }
  }
  const auto rows = static_cast<int>(owner.size());
  return {{rows, sequences, t.in(row_start), t.in(owner), t.in(position), decoded},
          {cache_is_written ? t.out(keys) : const_cast<bf16*>(t.in(keys)),
           cache_is_written ? t.out(values) : const_cast<bf16*>(t.in(values)), DType::bf16, page_size, kv_heads,
           t.in(table), stride}};
}

void embed(Trial& t) {
  const int rows = t.rows(), hidden = 32 * t.between(1, 20), vocab = t.between(1, 50);
  std::vector<int32_t> tokens(rows);
  for (int32_t& v : tokens) v = t.between(0, vocab - 1);
  t.backend.embed({t.in(tokens), t.bf16s(size_t(vocab) * hidden), t.out<float>(size_t(rows) * hidden), rows, hidden});
}

void attention_in(Trial& t) {
  const int hidden = 32 * t.between(1, 12), kv_heads = t.between(1, 2), heads = kv_heads * t.between(1, 3);
  const Context c = context(t, kv_heads, 0, true);
  const size_t rows = c.batch.rows;
  const auto lora = [&](int n) {
    return t.lora(c.batch.rows, c.batch.rows, 1, hidden, n * kHeadDim, [](int row) { return row; });
  };
  t.backend.attention_in({c.batch, t.floats(rows * hidden), t.bf16s(hidden), 1e-5f,
                          t.linear(heads * kHeadDim, hidden, MatrixUse::rotary_product),
                          t.linear(kv_heads * kHeadDim, hidden, MatrixUse::rotary_product),
                          t.linear(kv_heads * kHeadDim, hidden, MatrixUse::product), t.floats(kHeadDim / 2), 1.3f,
                          c.cache, t.out<float>(rows * hidden), t.out<float>(rows * heads * kHeadDim), lora(heads),
                          lora(kv_heads), lora(kv_heads)});
}

void paged_attention(Trial& t) {
  const int kv_heads = t.between(1, 2), heads = kv_heads * t.between(1, 10);
  const int window = t.chance(0.5) ? 0 : t.between(1, 300);
  const Context c = context(t, kv_heads, window, false);
  const size_t size = size_t(c.batch.rows) * heads * kHeadDim;
  t.backend.paged_attention({c.batch, t.floats(size), c.cache, t.bf16s(heads), heads, window, t.out<float>(size)});
}

void attention_out(Trial& t) {
  const int rows = t.product_rows(), in = kHeadDim * t.between(1, 8), out = 32 * t.between(1, 4);
  std::vector<float> residual(size_t(rows) * out, 1.0f);
  t.backend.attention_out({t.floats(size_t(rows) * in), t.linear(out, in, MatrixUse::product), t.out(residual), rows,
                           t.between(0, rows), t.lora(rows, rows, 1, in, out, [](int row) { return row; })});
}

// A slot or none for each row.
const int32_t* slots_of(Trial& t, int rows, int slots) {
  std::vector<int32_t> of(rows);
  for (int32_t& v : of) v = t.between(-1, slots - 1);
  return t.in(of);
}

void moe_gate(Trial& t) {
  const int rows = t.chance(0.5) ? t.rows() : t.between(60, 90), hidden = 32 * t.between(1, 12),
            experts = t.between(1, 128);
  const int chosen = t.between(1, std::min(experts, 6)), assignments = rows * chosen;
  const int slots = t.between(1, 3);
  std::vector<ExpertControl> controls(size_t(slots) * experts);
  for (ExpertControl& v : controls) v = {static_cast<float>(t.normal()), t.between(-1, 1)};
  const bool has_slots = t.chance(0.5);
  t.backend.moe_gate({t.floats(size_t(rows) * hidden),
                      t.bf16s(hidden),
                      1e-5f,
                      t.linear(experts, hidden, MatrixUse::rows),
                      chosen,
                      ExpertInput{.b16 = t.out<bf16>(size_t(rows) * hidden)},
                      t.out<int32_t>(assignments),
                      t.out<float>(assignments),
                      {t.out<int32_t>(experts + 1), t.out<int32_t>(assignments)},
                      rows,
                      has_slots ? slots_of(t, rows, slots) : nullptr,
                      has_slots ? t.in(controls) : nullptr,
                      t.lora(rows, rows, 1, hidden, experts, [](int row) { return row; })});
}

void moe_up(Trial& t) {
  const int rows = t.product_rows(), hidden = 32 * t.between(1, 20), inner = 32 * t.between(1, 2),
            experts = t.between(1, 6);
  const int chosen = t.between(1, std::min(experts, 4));
  t.backend.moe_up({ExpertInput{.b16 = const_cast<bf16*>(t.bf16s(size_t(rows) * hidden))},
                    t.groups(rows, chosen, experts), t.experts(experts, 2 * inner, hidden), 7.0f, chosen,
                    ExpertInput{.b16 = t.out<bf16>(size_t(rows) * chosen * inner)}, rows, t.between(0, rows),
                    t.lora(rows, rows * chosen, experts, hidden, 2 * inner, [&](int n) { return n / chosen; })});
}

void moe_down(Trial& t) {
  const int rows = t.product_rows(), hidden = 32 * t.between(1, 3), inner = 32 * t.between(1, 20),
            experts = t.between(1, 6);
  const int chosen = t.between(1, std::min(experts, 4)), assignments = rows * chosen;
  std::vector<float> residual(size_t(rows) * hidden, 1.0f);
  const int slots = t.between(1, 3);
  const bool has_slots = t.chance(0.5);
  t.backend.moe_down({ExpertInput{.b16 = const_cast<bf16*>(t.bf16s(size_t(assignments) * inner))},
                      t.groups(rows, chosen, experts), t.experts(experts, hidden, inner), t.floats(assignments), chosen,
                      t.out(residual), rows, t.between(0, rows), has_slots ? slots_of(t, rows, slots) : nullptr,
                      has_slots ? t.floats(size_t(slots) * hidden) : nullptr,
                      t.lora(rows, assignments, experts, inner, hidden, [&](int n) { return n / chosen; })});
}

void unembed(Trial& t) {
  const int rows = t.rows(), count = t.between(1, rows), hidden = 32 * t.between(1, 12), vocab = t.between(1, 90);
  std::vector<int32_t> wanted(count);
  for (int32_t& v : wanted) v = t.between(0, rows - 1);
  t.backend.unembed({t.floats(size_t(rows) * hidden), t.in(wanted), count, t.bf16s(hidden), 1e-5f,
                     t.linear(vocab, hidden, MatrixUse::product, false), t.out<float>(size_t(count) * hidden),
                     t.out<float>(size_t(count) * vocab),
                     t.lora(rows, count, 1, hidden, vocab, [&](int i) { return wanted[i]; })});
}

// Products of experts' own matrices, or of a layer's with its norm.
void lora(Trial& t) {
  const int rows = t.rows(), width = 32 * t.between(1, 12), experts = t.between(1, 6);
  const int chosen = t.between(1, experts);
  const bool of_experts = t.chance(0.5), by_assignment = of_experts && t.chance(0.5);
  LoraParams p;
  p.width = width;
  p.count = of_experts ? rows * chosen : rows;
  p.chosen = of_experts ? chosen : 1;
  p.by_assignment = by_assignment;
  if (by_assignment) {
    p.input.b16 = const_cast<bf16*>(t.bf16s(size_t(p.count) * width));
  } else {
    p.input.f32 = const_cast<float*>(t.floats(size_t(rows) * width));
    p.norm_weight = t.bf16s(width);
    p.norm_eps = 1e-5f;
  }
  if (of_experts) {
    std::vector<int32_t> expert(p.count);
    for (int32_t& v : expert) v = t.between(0, experts - 1);
    p.expert = t.in(expert);
  }
  for (Lora& target : p.target) {
    target = t.lora(rows, p.count, of_experts ? experts : 1, width, 1, [&](int n) { return n / p.chosen; });
    if (target) target.product = t.out<float>(size_t(p.count) * target.stride);
  }
  t.backend.lora(p);
}

void sample(Trial& t) {
  for (const uint32_t low : {0u, 1u << 31, ~0u, static_cast<uint32_t>(t.generator()())})
    for (int ones = 0; ones <= 32; ++ones) {
      const uint32_t bits = ones == 32 ? ~0u : ~(~0u >> ones) | low >> 1 >> ones;  // so many at the top, then a zero
      CHECK(gumbel_at_least(ones) <= gumbel_of(bits) && gumbel_of(bits) <= gumbel_at_most(ones), "the noise of ", bits,
            " is ", gumbel_of(bits), ", the bounds are ", gumbel_at_least(ones), " and ", gumbel_at_most(ones));
    }
  const int count = t.between(1, 4), vocab = t.chance(0.7) ? t.between(1, 900) : t.between(2000, 7000),
            words = (vocab + 31) / 32;
  std::vector<float> logits(size_t(count) * vocab), bias_values;
  for (float& v : logits) v = std::round(8 * t.normal()) / 4;  // many are equal
  if (t.chance(0.1)) logits[t.between(0, vocab - 1)] = NAN;
  std::vector<uint32_t> allowed(size_t(count) * words);
  for (uint32_t& v : allowed) v = static_cast<uint32_t>(t.between(1, 255)) * 0x01010101u;
  for (int i = 0; i < count; ++i) allowed[size_t(i) * words] |= 1;  // a token of the vocabulary
  std::vector<int32_t> bias_tokens, history;
  const auto extend = [&](std::vector<int32_t>& list) {
    for (int n = t.between(0, 5); n > 0; --n) list.push_back(t.between(0, vocab - 1));
    return static_cast<int32_t>(list.size());
  };
  std::vector<SampleRow> rows(count);
  for (int i = 0; i < count; ++i) {
    SampleRow& row = rows[i];
    row.temperature = t.chance(0.2) ? 0.0f : 0.8f;
    row.top_p = t.chance(0.5) ? 1.0f : 0.7f;
    row.min_p = t.chance(0.5) ? 0.0f : 0.01f;
    row.repetition_penalty = t.chance(0.5) ? 1.0f : 1.2f;
    row.presence_penalty = t.chance(0.5) ? 0.0f : 0.5f;
    row.frequency_penalty = t.chance(0.5) ? 0.0f : 0.25f;
    row.top_k = t.chance(0.5) ? 0 : t.between(1, 2 * vocab);
    row.seed = t.generator()();
    row.position = t.generator()() % 1000;
    row.bias_start = static_cast<int32_t>(bias_tokens.size()), row.bias_end = extend(bias_tokens);
    row.prompt_start = static_cast<int32_t>(history.size()), row.prompt_end = extend(history);
    row.output_start = row.prompt_end, row.output_end = extend(history);
    row.mask_row = t.chance(0.5) ? -1 : i;
    row.skip_report = t.chance(0.3);
  }
  for (size_t i = 0; i < bias_tokens.size(); ++i) bias_values.push_back(t.normal());
  const bool told = t.chance(0.5);  // whether any row cuts or reports
  const auto any = [&](auto&& is) { return !told || std::any_of(rows.begin(), rows.end(), is); };
  const int logprobs = t.between(0, std::min(vocab, 5));
  t.backend.sample({t.in(logits), count, vocab, t.in(rows), t.in(bias_tokens), t.in(bias_values), t.in(history),
                    t.in(allowed), logprobs, t.out<SampleStatus>(count), t.out<int32_t>(count), t.out<float>(count),
                    t.out<int32_t>(count), t.out<int32_t>(size_t(count) * logprobs),
                    t.out<float>(size_t(count) * logprobs), any([&](const SampleRow& row) { return row.cuts(vocab); }),
                    any([](const SampleRow& row) { return !row.skip_report; })});
}

// Weights in kernel form: what the kernels of prepare.cu make is what layout.h says, byte for byte, and the way back
// gives the checkpoint's bytes.
void prepare(Trial& t) {
  const int out = 32 * t.between(1, 9), in = 32 * t.between(1, 9), experts = t.between(1, 3);
  const bool rotary = out % 64 == 0 && t.chance(0.5);
  const auto order = rotary ? layout::RowOrder::rotary : layout::RowOrder::plain;
  const auto read = [&](const void* from, size_t bytes) {
    std::vector<uint8_t> found(bytes);
    t.backend.copy_out(found.data(), from, bytes);
    return found;
  };
  DeviceStorage storage;
  const auto weight = t.host_bf16(size_t(out) * in);
  const Linear dense = t.backend.prepare(Linear{weight.data(), nullptr, out, in},
                                         rotary ? MatrixUse::rotary_product : MatrixUse::product, storage);
  std::vector<bf16> tiled(layout::dense_bytes(out, in) / sizeof(bf16)), again(weight.size());
  layout::dense_to_kernel(weight.data(), out, in, order, tiled.data());
  CHECK(std::memcmp(read(dense.weight, tiled.size() * 2).data(), tiled.data(), tiled.size() * 2) == 0,
        "dense weights of ", out, " x ", in, " differ from layout.h, rotary ", rotary);
  layout::dense_to_checkpoint(tiled.data(), out, in, order, again.data());
  CHECK(std::memcmp(again.data(), weight.data(), weight.size() * 2) == 0, "dense weights do not come back");

  std::vector<uint8_t> blocks(size_t(experts) * out * in / 2), scales(blocks.size() / kMxfp4BlockBytes);
  for (uint8_t& v : blocks) v = static_cast<uint8_t>(t.between(0, 255));
  for (uint8_t& v : scales) v = static_cast<uint8_t>(t.between(0, 160));
  const std::vector<bf16> bias(size_t(experts) * out);
  const ExpertLinear packed =
      t.backend.prepare(ExpertLinear{blocks.data(), scales.data(), bias.data(), experts, out, in}, storage);
  const size_t code_bytes = layout::mxfp4_code_bytes(out, in), scale_bytes = layout::mxfp4_scale_bytes(out, in);
  const size_t own_blocks = blocks.size() / experts, own_scales = scales.size() / experts;
  for (int e = 0; e < experts; ++e) {
    std::vector<uint8_t> codes(code_bytes), tiled_scales(scale_bytes), back(own_blocks), scales_back(own_scales);
    layout::codes_to_kernel(blocks.data() + e * own_blocks, out, in, codes.data());
    layout::scales_to_kernel(scales.data() + e * own_scales, out, in, tiled_scales.data());
    CHECK(read(packed.blocks + e * code_bytes, code_bytes) == codes, "codes of expert ", e, " differ from layout.h");
    CHECK(read(packed.scales + e * scale_bytes, scale_bytes) == tiled_scales, "scales of expert ", e,
          " differ from layout.h");
    layout::codes_to_checkpoint(codes.data(), out, in, back.data());
    layout::scales_to_checkpoint(tiled_scales.data(), out, in, scales_back.data());
    CHECK(std::memcmp(back.data(), blocks.data() + e * own_blocks, own_blocks) == 0 &&
              std::memcmp(scales_back.data(), scales.data() + e * own_scales, own_scales) == 0,
          "MXFP4 weights of ", out, " x ", in, " do not come back");
  }
}

// A record is replayed after an op outside of it has made the workspaces grow: it must not use the memory that they
// gave back.
void replay(Trial& t) {
  const int hidden = 32, inner = 64, experts = 2;
  const auto down = [&](int out) {
    std::vector<float> residual(out, 1.0f);
    MoeDownParams p{};
    p.input.b16 = const_cast<bf16*>(t.bf16s(inner));
    p.groups = t.groups(1, 1, experts);
    p.down = t.experts(experts, out, inner);
    p.routing_weight = t.floats(1);
    p.chosen = p.rows = p.decode_rows = 1;
    p.residual = t.out(residual);
    return p;
  };
  const auto outcome = [&](const MoeDownParams& p) {
    std::vector<float> found(p.down.out);
    t.backend.copy_out(found.data(), p.residual, found.size() * sizeof(float));
    return found;
  };
  const MoeDownParams repeated = down(hidden);
  MoeDownParams wanted = repeated;
  wanted.residual = t.out(std::vector<float>(hidden, 1.0f));
  const auto backend = simulated::make_backend();  // of which a record holds the workspaces at their smallest
  const int times = t.between(3, 5), more = t.between(1, 3);  // the third time records
  const auto repeat = [&](int n) {
    while (n-- > 0) backend->repeat({1}, [&] { backend->moe_down(repeated); });
  };
  repeat(times);
  backend->moe_down(down(hidden * t.between(10, 40)));
  repeat(more);
  for (int n = 0; n < times + more; ++n) t.backend.moe_down(wanted);
  CHECK(outcome(repeated) == outcome(wanted), "replayed ", more, " times after the workspaces have grown, a record of ",
        times, " rounds gives other bits than the op called as often");
}

struct Op {
  const char* name;
  void (*run)(Trial&);
};
constexpr Op kOps[] = {{"embed", embed},
                       {"attention_in", attention_in},
                       {"paged_attention", paged_attention},
                       {"attention_out", attention_out},
                       {"moe_gate", moe_gate},
                       {"moe_up", moe_up},
                       {"moe_down", moe_down},
                       {"unembed", unembed},
                       {"lora", lora},
                       {"sample", sample},
                       {"prepare", prepare},
                       {"replay", replay}};

int run(const Op& op, uint64_t seed, int schedules) {
  std::unique_ptr<Backend> backend;
  std::list<std::vector<unsigned char>> first;
  for (int schedule = 0; schedule < schedules; ++schedule) {
    // A new backend has workspaces of exactly the size asked for; on an old one, counters must be zero again.
    if (schedule % 2 == 0) backend = simulated::make_backend();
    simulated::set_seed(seed + schedule);
    simulated::set_architecture(seed % 2 == 0 ? 80 : 90);
    Trial trial(*backend, seed);
    op.run(trial);
    trial.finish();
    if (schedule == 0) first = trial.outputs;
    if (trial.outputs != first) {
      std::printf("%s: seed %llu: schedule %d gives other bits than schedule 0\n", op.name,
                  static_cast<unsigned long long>(seed), schedule);
      return 1;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  for (const Op& op : kOps) {
    if (argc == 1) std::puts(op.name);
    if (argc == 4 && std::strcmp(op.name, argv[1]) == 0) try {
        return run(op, std::strtoull(argv[2], nullptr, 10), std::atoi(argv[3]));
      } catch (const Error& error) {
        std::puts(error.what());
        return 1;
      }
  }
  if (argc == 1) return 0;
  std::fputs("usage: simt_ops [OP SEED SCHEDULES]; without arguments it lists the ops\n", stderr);
  return 2;
}
