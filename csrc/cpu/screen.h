// Tokens drawn without computing all logits, and the same ones. A draw is an argmax, of logits or of logits and noise,
// and hardly any token comes near it. With an input rounded to bytes, x', and weights to six bits,
// w' (cpu/screen_weights.h), a product takes 0.4 of the memory's time, and by Cauchy and Schwarz
//   |x w - x' w'| <= |x| |w - w'| + |x - x'| |w'|.
// So `unembed` leaves x' w' and that much more, an upper bound of each logit, and `sample` computes the logits that the
// draw may depend on, from the numbers that lm_head has: a first few, then whatever has a bound not below what those
// have reached. What is left cannot change the draw, whatever it is. (Where lm_head is multiplied in bytes, x and w
// above are what they are rounded to, and x is x'.)
#pragma once

#include <functional>

#include "cpu/token_row.h"

namespace gptoss::cpu {

// The two errors of a row of lm_head: what |x| and |x - x'| are multiplied with. Both allow for the rounding of sums.
inline constexpr int kScreenErrors = 2;

// Makes those of a row's finite bounds exact that the draw depends on; exact(token) makes one of them so. What the
// settings change before the draw, they have changed; `likely` has the largest of what that leaves. False: all are
// needed, or more than `most`, as which it does not pay to find them one by one.
bool settle(const std::function<void(int token)>& exact, const SampleRow& settings, TokenRow& row, int likely,
            int most);

}  // namespace gptoss::cpu
