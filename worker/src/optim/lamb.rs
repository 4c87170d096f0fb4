//! LAMB (You et al. 2020, algorithm 2): Adam whose step on each tensor is as long as the tensor itself, times the rate.

use multiversion::multiversion;

use super::optimizer::{BETA1, BETA2, EPSILON, Factors, ONE_MINUS_BETA1, ONE_MINUS_BETA2};
use crate::gradient::global_norm;

/// r = m̂/(√v̂ + ε) + decay·p; p −= rate·(‖p‖/‖r‖)·r, for one tensor. Where a norm is 0 the ratio is 1. `direction` is
/// room for r.
pub(super) fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: &Factors, direction: &mut Vec<f32>) {
    direction.resize(p.len(), 0.0);
    turn(p, g, m, v, f, direction);
    let (length, step) = (global_norm(p), global_norm(direction));
    let trust = if length > 0.0 && step > 0.0 { length / step } else { 1.0 };
    go(p, direction, (f64::from(f.rate) * trust) as f32);
}

/// The moments, and r.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn turn(p: &[f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: &Factors, direction: &mut [f32]) {
    for ((((r, p), g), m), v) in direction.iter_mut().zip(p).zip(g).zip(m).zip(v) {
        let g = g * f.gradient;
        *m = BETA1 * *m + ONE_MINUS_BETA1 * g;
        *v = BETA2 * *v + ONE_MINUS_BETA2 * g * g;
        *r = f.first * *m / (v.sqrt() * f.root + EPSILON) + f.decay * p;
    }
}

/// p −= rate·r.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn go(p: &mut [f32], direction: &[f32], rate: f32) {
    for (p, r) in p.iter_mut().zip(direction) {
        *p -= rate * r;
    }
}
