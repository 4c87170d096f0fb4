//! Adam with decoupled weight decay: with the moments' bias corrected it is AdamW (Loshchilov and Hutter 2019), without
//! it is BERT's own (Devlin et al. 2019).

use multiversion::multiversion;

use super::optimizer::{BETA1, BETA2, EPSILON, Factors, ONE_MINUS_BETA1, ONE_MINUS_BETA2};

/// m = β₁m + (1−β₁)g; v = β₂v + (1−β₂)g²; p −= rate·(m̂/(√v̂ + ε) + decay·p). One pass over four arrays of equal
/// length, for the widest vectors that the machine has.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub(super) fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: &Factors) {
    let (rate, decay) = (f.rate * f.first, f.rate * f.decay);
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * f.gradient;
        *m = BETA1 * *m + ONE_MINUS_BETA1 * g;
        *v = BETA2 * *v + ONE_MINUS_BETA2 * g * g;
        *p -= rate * (*m / (v.sqrt() * f.root + EPSILON)) + decay * *p;
    }
}
