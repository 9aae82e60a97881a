// The values of a tile of pairs, layer by layer; what sf_evaluate and its gradient share.
#pragma once
#include <cmath>
#include <cstdlib>

#include "../sf_evaluate.h"
#include "products.h"

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

constexpr double epsilon = 1e-5;  // of torch's layer_norm

// aligned for every vector; null where there is no memory
template <typename T>
struct Buffer {
  T* data;
  explicit Buffer(int64_t count)
      : data(static_cast<T*>(std::aligned_alloc(64, blocks(count * sizeof(T) + 1, 64) * 64))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

template <typename Operands>
inline Vector<double> tanh(Vector<double> x) {
  for (int64_t lane = 0; lane < lanes<double>; ++lane) x[lane] = std::tanh(x[lane]);
  return x;
}

// x P(x^2) / Q(x^2), fitted up to where tanh is 1 in the precision that is kept: to a relative
// error of 2e-8, or of 5e-5 where 16 bits are kept
template <typename Operands>
inline Vector<float> tanh(Vector<float> x) {
  constexpr float end = Operands::precise ? 9.02f : 4.97f;
  x = larger(broadcast(-end), smaller(broadcast(end), x));
  const Vector<float> y = x * x;
  Vector<float> p, q;
  if constexpr (Operands::precise) {
    p = y * 1.3319546067328676e-08f + 2.0583866105979795e-05f;
    p = p * y + 0.003494059874218238f;
    p = p * y + 0.13379739918259563f;
    p = p * y + 0.999999979105738f;
    q = y * 7.762225965499151e-07f + 0.0003283132867235353f;
    q = q * y + 0.02587117155526924f;
    q = q * y + 0.46713055191761066f;
  } else {
    p = y * 0.0006735088165640727f + 0.10251211970132648f;
    p = p * y + 0.9999498227679534f;
    q = y * 0.01284894554095614f + 0.4355362577882904f;
  }
  q = q * y + 1.0f;
#if defined(__AVX512F__)
  // an approximate inverse, and a Newton step where 14 bits do not do: a third of a division's time
  Vector<float> inverse = reinterpret_cast<Vector<float>>(
      _mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(q)));
  if constexpr (Operands::precise) inverse += inverse * (1.0f - q * inverse);
  return x * p * inverse;
#else
  return x * p / q;
#endif
}

struct Tile {
  int64_t first, rows, padded;
  int64_t state[tile], latent[tile];  // rows past the end repeat the first pair

  Tile(const Pairs& pairs, int64_t begin, int64_t end, int64_t strip)
      : first(begin), rows(min(tile, end - begin)), padded(blocks(rows, strip) * strip) {
    for (int64_t row = 0; row < padded; ++row) {
      const int64_t pair = row < rows ? first + row : first;
      state[row] = pairs.state(pair);
      latent[row] = pairs.latent(pair);
    }
  }
};

// kept activations of one head: input of each layer and, for the gradient, output of the last
template <typename Kept>
struct Activations {
  Kept* at[sf_max_layers + 1];
  Kept* wide;  // a layer's output as it is, where rows are kept relative to their largest number
};

template <typename Kinds, typename Real>
int64_t activations_size(const SfEvaluate<Real>& args) {
  int64_t size = Kinds::kept_size(0, args.hidden), widest = 0;
  for (int64_t l = 0; l < args.layers; ++l) {
    size += Kinds::kept_size(l + 1, args.layer[l].out);
    widest = max(widest, args.layer[l].out);
  }
  constexpr int64_t of_real = sizeof(Real) / sizeof(typename Kinds::Kept);
  return size + Kinds::scaled * tile * widest * of_real;
}

template <typename Kinds, typename Real>
Activations<typename Kinds::Kept> place_activations(const SfEvaluate<Real>& args,
                                                       typename Kinds::Kept* at) {
  Activations<typename Kinds::Kept> kept{};
  kept.at[0] = at;
  at += Kinds::kept_size(0, args.hidden);
  for (int64_t l = 0; l < args.layers; ++l) {
    kept.at[l + 1] = at;
    at += Kinds::kept_size(l + 1, args.layer[l].out);
  }
  kept.wide = at;
  return kept;
}

template <typename Kinds, typename Real>
int64_t weights_size(const SfEvaluate<Real>& args) {
  int64_t size = 0;
  for (int64_t l = 0; l < args.layers; ++l)
    size += Kinds::packed_size(l, args.layer[l].in, args.layer[l].out);
  return size;
}

// about the root of the mean square of each unit's tanh(g scale + shift), with g of mean square 1
template <typename Real>
void typical_activations(const SfEvaluate<Real>& args, int64_t head, Real* to) {
  for (int64_t j = head * args.hidden; j < (head + 1) * args.hidden; ++j) {
    const double scale = args.scale[j], shift = args.shift[j];
    const double square = scale * scale + shift * shift;
    *to++ = std::isfinite(square) ? std::sqrt(square / (1 + square)) : 1;
  }
}

// Packs the weights of all heads, transposed for the gradient. Those of (head, l) are at
// head * weights_size + the sizes of the layers before l.
template <typename Kinds, typename Real>
void pack_weights(const SfEvaluate<Real>& args, bool transposed, typename Kinds::Kept* to) {
  for (int64_t head = 0; head < args.heads; ++head)
    for (int64_t l = 0; l < args.layers; ++l) {
      const int64_t in = args.layer[l].in, out = args.layer[l].out;
      const Real* weight = args.layer[l].weight + head * in * out;
      if constexpr (Kinds::First::balanced)
        if (l == 0) typical_activations(args, head, to);
      if (transposed)
        Kinds::pack(l, Matrix<Real>{weight, 1, out}, out, in, to);
      else
        Kinds::pack(l, Matrix<Real>{weight, out, 1}, in, out, to);
      to += Kinds::packed_size(l, in, out);
    }
}

// tanh(x / sqrt(mean x^2 + epsilon) * scale + shift) with x = state + latent, both centred; that is
// LayerNorm, without its mean. inverse_norm: 1 / sqrt(...) of each row. balance: what activations
// are multiplied by, if the kind has that.
template <typename Operands>
__attribute__((noinline)) void join(const SfEvaluate<typename Operands::Real>& args, int64_t head,
                                    const Tile& t, const typename Operands::Kept* balance,
                                    typename Operands::Kept* out,
                                    typename Operands::Real* inverse_norm) {
  using Real = typename Operands::Real;
  const int64_t hidden = args.hidden;
  const Real* scale = args.scale + head * hidden;
  const Real* shift = args.shift + head * hidden;
  const Real* states = args.state + head * args.pairs.states() * hidden;
  const Real* latents = args.latent + head * args.pairs.latents() * hidden;
  for (int64_t row = 0; row < t.padded; ++row) {
    const Real* state = states + t.state[row] * hidden;
    const Real* latent = latents + t.latent[row] * hidden;
    Vector<Real> squares[2] = {};
    for (int64_t j = 0; j < hidden; j += panel<Real>)
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t at = j + half * lanes<Real>;
        const Vector<Real> x = load(state + at) + load(latent + at);
        squares[half] += x * x;
      }
    inverse_norm[row] = sum<Real>(squares[0] + squares[1]);
  }
  for (int64_t row = 0; row < t.padded; ++row) {
    const Real mean = inverse_norm[row] / static_cast<Real>(args.hidden_used);
    inverse_norm[row] = 1 / std::sqrt(mean + static_cast<Real>(epsilon));
  }
  // a loop of its own: the sums of one row would wait for the activations of the row before
  for (int64_t row = 0; row < t.padded; ++row) {
    const Real* state = states + t.state[row] * hidden;
    const Real* latent = latents + t.latent[row] * hidden;
    const Real factor = inverse_norm[row];
    const auto activation = [&](int64_t j) {
      const Vector<Real> x = (load(state + j) + load(latent + j)) * factor;
      const Vector<Real> y = tanh<Operands>(x * load(scale + j) + load(shift + j));
      if constexpr (Operands::balanced) return y * load(balance + j);
      return y;
    };
    typename Operands::Row kept(out, row, hidden, 1);
    for (int64_t j = 0; j < hidden; j += panel<Real>)
      kept.keep(j, activation(j), activation(j + lanes<Real>));
    kept.end();
  }
}

// of the lanes and `least`
template <typename Real>
inline Real greatest(Vector<Real> x, Real least) {
  for (int64_t lane = 0; lane < lanes<Real>; ++lane) least = x[lane] > least ? x[lane] : least;
  return least;
}

// values of one head (rows), the last layer's output kept where the gradient needs it
template <typename Kinds, bool keep_last>
void forward(const SfEvaluate<typename Kinds::Real>& args, const typename Kinds::Kept* weights,
             int64_t head, const Tile& t, const Activations<typename Kinds::Kept>& kept,
             typename Kinds::Real* inverse_norm, typename Kinds::Real* q) {
  using Real = typename Kinds::Real;
  using Rest = typename Kinds::Rest;
  const int64_t states = args.pairs.states(), latents = args.pairs.latents();
  join<typename Kinds::First>(args, head, t, weights, kept.at[0], inverse_norm);
  for (int64_t l = 0; l < args.layers; ++l) {
    const Layer<Real>& layer = args.layer[l];
    const int64_t out = layer.out;
    const typename Kinds::Kept* packed = weights + (l == 0 ? Kinds::balance_size(layer.in) : 0);
    const Real* addend = layer.addend + head * (layer.by_state ? states : 1) * out;
    const int64_t stride = layer.by_state ? out : 0;
    auto* next = kept.at[l + 1];
    if (l + 1 < args.layers) {
      Real* wide = reinterpret_cast<Real*>(kept.wide);
      Vector<Real> largest[tile] = {};
      product<Kinds>(l, kept.at[l], t.padded, layer.in, out, packed,
                     [&](int64_t row, int64_t column, Vector<Real> left, Vector<Real> right) {
                       const Real* add = addend + t.state[row] * stride + column;
                       left = positive(left + load(add));
                       right = positive(right + load(add + lanes<Real>));
                       if constexpr (Kinds::scaled) {
                         largest[row] = larger(larger(left, right), largest[row]);
                         typename Full<Real>::Row(wide, row, out, 0).keep(column, left, right);
                       } else {
                         typename Rest::Row(next, row, out, 0).keep(column, left, right);
                       }
                     });
      if constexpr (Kinds::scaled)
        for (int64_t row = 0; row < t.padded; ++row) {
          typename Rest::Row to(next, row, out, greatest(largest[row], Rest::smallest));
          for (int64_t column = 0; column < out; column += panel<Real>) {
            const Real* from = wide + row * out + column;
            to.keep(column, load(from), load(from + lanes<Real>));
          }
          to.end();
        }
    } else {
      const Real *add_to[tile], *read_by[tile];
      for (int64_t row = 0; row < t.padded; ++row) {
        add_to[row] = addend + t.state[row] * stride;
        read_by[row] = args.readout + (head * latents + t.latent[row]) * out;
      }
      Vector<Real> dot[tile] = {};
      product<Kinds>(l, kept.at[l], t.padded, layer.in, out, packed,
                     [&](int64_t row, int64_t column, Vector<Real> left, Vector<Real> right) {
                       const Real* add = add_to[row] + column;
                       const Real* read = read_by[row] + column;
                       left = positive(left + load(add));
                       right = positive(right + load(add + lanes<Real>));
                       dot[row] += left * load(read);
                       dot[row] += right * load(read + lanes<Real>);
                       if constexpr (keep_last)
                         typename Rest::Row(next, row, out, 0).keep(column, left, right);
                     });
      const Real* offset =
          args.offset + head * (args.offset_by_pair ? args.pairs.count() : latents);
      for (int64_t row = 0; row < t.rows; ++row)
        q[row] = sum<Real>(dot[row]) +
                 offset[args.offset_by_pair ? t.first + row : t.latent[row]];
    }
    weights += Kinds::packed_size(l, layer.in, layer.out);
  }
}

}  // namespace
}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
