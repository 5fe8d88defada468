// Functions of sixteen floats that torch has and the instruction sets lack.
#pragma once

#include "lanes.h"

#include <initializer_list>

namespace lanes {

// e^x = 2^power * (1 + rest * slope), with |rest| <= ln 2 / 2 and a polynomial of degree 5 for the slope.
struct Exponential {
  Lanes power, rest, slope;
};

inline Exponential exponential(Lanes x) {
  const Lanes power = nearest(multiply(x, all(1.44269504f)));
  Lanes rest = multiply_add(power, all(-0.693359375f), x);
  rest = multiply_add(power, all(2.12194440e-4f), rest);
  Lanes slope = all(1.3981999507e-3f);
  for (const float coefficient : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f})
    slope = multiply_add(slope, rest, all(coefficient));
  return {power, rest, slope};
}

// Within 2e-7 of the result: exactly 1 at 0, exactly 0 at -inf, infinity above 88.8; NaN stays NaN.
inline Lanes exp(Lanes x) {
  const Exponential e = exponential(smaller(all(89.0f), larger(all(-104.0f), x)));
  return scaled(multiply_add(e.rest, e.slope, all(1.0f)), e.power);
}

constexpr float LOG2_E = 1.44269504f;

// 2^x for x <= 0, within 2e-7 of the result: exactly 1 at 0, exactly 0 at -inf; NaN stays NaN. The coefficients are those
// of the least relative error over |rest| <= 1/2.
inline Lanes exp2_of_negative(Lanes x) {
  x = larger(all(-151.0f), x);
  const Lanes power = nearest(x), rest = subtract(x, power);
  Lanes slope = all(0.0013264727f);
  for (const float coefficient : {0.009671513f, 0.055507336f, 0.24022242f, 0.693147f})
    slope = multiply_add(slope, rest, all(coefficient));
  return scaled(multiply_add(rest, slope, all(1.0f)), power);
}

// By e^2x - 1, which keeps its digits near 0.
inline Lanes tanh(Lanes x) {
  const Exponential e = exponential(smaller(all(20.0f), larger(all(-20.0f), add(x, x))));
  const Lanes two_to_power = scaled(all(1.0f), e.power);
  const Lanes less_one =
      multiply_add(two_to_power, multiply(e.rest, e.slope), subtract(two_to_power, all(1.0f)));
  return divide(less_one, add(less_one, all(2.0f)));
}

// Within 2e-7: x times a polynomial in x^2, whose Chebyshev interpolation over |x| <= 3.95 gave the coefficients.
// Beyond, erf is 1 or -1 to within a rounding.
inline Lanes erf(Lanes x) {
  const Lanes u = multiply_add(multiply(x, x), all(0.12818459f), all(-1.0f));
  Lanes y = all(-0.00103814178f);
  for (const float coefficient :
       {0.00242036604f, -0.00124377245f, 0.00181908964f, -0.0085868258f, 0.0153355692f, -0.020592276f, 0.0304292683f,
        -0.044435177f, 0.0591318868f, -0.0743023604f, 0.0904566869f, -0.108639248f, 0.133178219f, -0.178769499f,
        0.358000755f})
    y = multiply_add(y, u, all(coefficient));
  return one_beyond(all(3.95f), x, multiply(x, y));
}

inline Lanes sigmoid(Lanes x) {
  // Up to 87, 1 + e^-x has an inverse that is a normal number.
  const Lanes power = exp(smaller(all(87.0f), subtract(all(0.0f), x)));
  return inverse(add(all(1.0f), power));
}

enum class Activation : int64_t { none, silu, gelu, gelu_tanh, relu };

inline Lanes activate(Activation kind, Lanes x) {
  switch (kind) {
  case Activation::none: return x;
  case Activation::silu: return multiply(x, sigmoid(x));
  case Activation::gelu: {
    const Lanes half = multiply(x, all(0.5f));
    return multiply_add(half, erf(multiply(x, all(0.70710678f))), half);
  }
  case Activation::gelu_tanh: {
    // 0.5 x (1 + tanh u) = x sigmoid(2 u)
    const Lanes cube = multiply(multiply(x, x), x);
    const Lanes u = multiply(multiply_add(cube, all(0.044715f), x), all(1.5957691216f));
    return multiply(x, sigmoid(u));
  }
  // The second where either is NaN, as in torch.
  case Activation::relu: return larger(all(0.0f), x);
  }
  return x;
}

} // namespace lanes
