// Compiled once an instruction set, into the namespace of that name; see leave_one_out.cpp.
//
// Pairs go in tiles as in sf_evaluate.cpp, forward with all activations kept, and back.
#include "parallel.h"
#include "sf_values.h"

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

template <typename Real>
void add_row(Real* to, const Real* row, int64_t width) {
  for (int64_t j = 0; j < width; ++j) to[j] += row[j];
}

// pairs [begin, end), which this thread alone writes the gradients of
template <typename Real>
struct GradScratch {
  Activations<Real> kept[sf_max_heads];
  Real inverse_norm[sf_max_heads][tile];
  Real* delta[2];
};

template <typename Real>
void backward(const SfEvaluate<Real>& args, const Real* weights, const Real* transposed,
              int64_t begin, int64_t end, int64_t split, GradScratch<Real>& scratch) {
  const int64_t states = args.pairs.states(), latents = args.pairs.latents();
  const int64_t hidden = args.hidden, weights_of_head = weights_size<Same<Full<Real>>>(args);
  for (int64_t first = begin; first < end; first += tile) {
    const Tile t(args.pairs, first, end, Full<Real>::strip);
    Real q[sf_max_heads][tile];
    for (int64_t head = 0; head < args.heads; ++head)
      forward<Same<Full<Real>>, true>(args, weights + head * weights_of_head, head, t,
                                scratch.kept[head], scratch.inverse_norm[head], q[head]);

    for (int64_t head = 0; head < args.heads; ++head) {
      const Activations<Real>& kept = scratch.kept[head];
      Real *delta = scratch.delta[0], *before = scratch.delta[1];
      const int64_t last = args.layers - 1, read = args.layer[last].out;
      for (int64_t row = 0; row < t.padded; ++row) {
        Real grad = 0;  // of rows past the end
        if (row < t.rows) {
          Real share = 1 / static_cast<Real>(args.heads);
          if (args.heads == 2) {
            const Real gap = q[head][row] - q[1 - head][row];
            share -= static_cast<Real>(args.pessimism) * static_cast<Real>((gap > 0) - (gap < 0));
          }
          grad = args.grad_q[t.first + row] * share;
          args.grad_head[head * args.pairs.count() + t.first + row] = grad;
        }
        const Real* y = kept.at[last + 1] + row * read;
        const Real* readout = args.readout + (head * latents + t.latent[row]) * read;
        for (int64_t j = 0; j < read; ++j) delta[row * read + j] = y[j] > 0 ? grad * readout[j] : 0;
        if (row < t.rows) {
          Real* to = args.grad_readout +
                     ((split * args.heads + head) * latents + t.latent[row]) * read;
          for (int64_t j = 0; j < read; ++j) to[j] += grad * y[j];
        }
      }

      const Real* weight = transposed + (head + 1) * weights_of_head;
      for (int64_t l = last; l >= 0; --l) {
        const Layer<Real>& layer = args.layer[l];
        if (layer.by_state)
          for (int64_t row = 0; row < t.rows; ++row)
            add_row(layer.grad_addend + (head * states + t.state[row]) * layer.out,
                    delta + row * layer.out, layer.out);
        weight -= layer.in * layer.out;
        const Real* input = kept.at[l];
        product<Full<Real>>(
            delta, t.padded, layer.out, layer.in, weight,
            [&](int64_t row, int64_t column, Vector<Real> left, Vector<Real> right) {
              const int64_t at = row * layer.in + column;
              if (l > 0) {  // through the rectifier that made the input
                left = load(input + at) > 0 ? left : Vector<Real>{};
                right = load(input + at + lanes<Real>) > 0 ? right : Vector<Real>{};
              }
              store(before + at, left);
              store(before + at + lanes<Real>, right);
            });
        Real* swap = delta;
        delta = before;
        before = swap;
      }

      // through tanh and the normalisation
      for (int64_t row = 0; row < t.rows; ++row) {
        const Real factor = scratch.inverse_norm[head][row];
        const Real* a = kept.at[0] + row * hidden;
        const Real* scale = args.scale + head * hidden;
        const Real* state = args.state + (head * states + t.state[row]) * hidden;
        const Real* latent = args.latent + (head * latents + t.latent[row]) * hidden;
        Real* grad = delta + row * hidden;
        Vector<Real> along{};
        for (int64_t j = 0; j < hidden; j += lanes<Real>) {
          const Vector<Real> y = load(a + j);
          const Vector<Real> g = load(grad + j) * (1 - y * y) * load(scale + j);
          store(grad + j, g);
          along += g * (load(state + j) + load(latent + j));
        }
        const Real slope =
            sum<Real>(along) * factor * factor / static_cast<Real>(args.hidden_used);
        for (int64_t j = 0; j < hidden; j += lanes<Real>) {
          const Vector<Real> x = load(state + j) + load(latent + j);
          store(grad + j, (load(grad + j) - x * slope) * factor);
        }
        add_row(args.grad_state + (head * states + t.state[row]) * hidden, grad, hidden);
        add_row(args.grad_latent +
                    ((split * args.heads + head) * latents + t.latent[row]) * hidden,
                grad, hidden);
      }
    }
  }
}

template <typename Real>
bool gradient(const SfEvaluate<Real>& args, int threads) {
  const Pairs& pairs = args.pairs;
  // a job: some whole groups, or one of the blocks of states that a group is cut into
  const int64_t of_group = pairs.B * pairs.K;
  const int64_t groups_of_job = args.splits > 1 ? 1 : max(1, tile / max(1, of_group));
  const int64_t block = blocks(pairs.B, args.splits) * pairs.K;
  const int64_t jobs = blocks(pairs.groups, groups_of_job) * args.splits;
  threads = static_cast<int>(max(1, min(threads, jobs)));

  int64_t widest = args.hidden;
  for (int64_t l = 0; l < args.layers; ++l) widest = max(widest, args.layer[l].out);
  const int64_t kept_size = activations_size<Same<Full<Real>>>(args);
  const int64_t scratch_size = args.heads * kept_size + 2 * tile * widest;
  const int64_t all_weights = args.heads * weights_size<Same<Full<Real>>>(args);
  Buffer<Real> weights(all_weights), transposed(all_weights), buffer(threads * scratch_size);
  if (!weights.data || !transposed.data || !buffer.data) return false;
  pack_weights<Same<Full<Real>>>(args, false, weights.data);
  pack_weights<Same<Full<Real>>>(args, true, transposed.data);

  int64_t next_job = 0, next_scratch = 0;
  auto work = [&] {
    Real* mine = buffer.data +
                 __atomic_fetch_add(&next_scratch, 1, __ATOMIC_RELAXED) * scratch_size;
    GradScratch<Real> scratch;
    for (int64_t head = 0; head < args.heads; ++head)
      scratch.kept[head] = place_activations<Same<Full<Real>>>(args, mine + head * kept_size);
    for (int64_t i = 0; i < 2; ++i)
      scratch.delta[i] = mine + args.heads * kept_size + i * tile * widest;
    for (;;) {
      const int64_t job = __atomic_fetch_add(&next_job, 1, __ATOMIC_RELAXED);
      if (job >= jobs) return;
      const int64_t split = job % args.splits, group = job / args.splits * groups_of_job;
      const int64_t begin = group * of_group + split * block;
      const int64_t groups = min(groups_of_job, pairs.groups - group);
      const int64_t end = args.splits > 1 ? min(begin + block, (group + 1) * of_group)
                                          : begin + groups * of_group;
      backward(args, weights.data, transposed.data, begin, end, split, scratch);
    }
  };
  run_on_threads(threads, work);
  return true;
}

}  // namespace

bool sf_evaluate_grad(const SfEvaluate<float>& args, int threads) {
  return gradient(args, threads);
}
bool sf_evaluate_grad(const SfEvaluate<double>& args, int threads) {
  return gradient(args, threads);
}

}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
