//! Losses of single examples: cross-entropy and squared error against targets that are mixed from gold labels and a
//! teacher's predictions (BAM section 2.2).

use bam_cluster::config::RegressionOutput;
use tch::{Kind, Tensor};

/// What a task's examples in a micro-batch should become.
pub struct Targets {
    /// Class index, or score on the 0–1 scale: float32 [examples].
    pub gold: Tensor,
    /// The teacher's outputs as its head gave them: float32 [examples, outputs].
    pub teacher: Option<Tensor>,
}

/// Cross-entropy between λ·onehot(gold) + (1−λ)·softmax(teacher/temperature) and softmax(logits). Targets are mixed in
/// probability space; BAM's temperature is 1. `logits`: [examples, classes]; returns [examples].
pub fn cross_entropy(logits: &Tensor, targets: &Targets, lambda: f64, temperature: f64) -> Tensor {
    let one_hot = targets.gold.to_kind(Kind::Int64).one_hot(logits.size()[1]).to_kind(Kind::Float);
    let teacher = targets.teacher.as_ref().map(|t| (t / temperature).softmax(-1, Kind::Float));
    let target = mix(one_hot, teacher, lambda);
    -(target * logits.log_softmax(-1, Kind::Float)).sum_dim_intlist([-1].as_slice(), false, Kind::Float)
}

/// Squared difference to λ·gold + (1−λ)·teacher's prediction. `outputs`: [examples, 1]; returns [examples].
pub fn squared_error(outputs: &Tensor, targets: &Targets, lambda: f64, output: RegressionOutput) -> Tensor {
    let teacher = targets.teacher.as_ref().map(|t| prediction(t, output));
    let target = mix(targets.gold.shallow_clone(), teacher, lambda);
    (prediction(outputs, output) - target).square()
}

/// A regression head's outputs, [examples, 1], as scores on the 0–1 scale, [examples].
pub fn prediction(outputs: &Tensor, output: RegressionOutput) -> Tensor {
    let flat = outputs.squeeze_dim(-1);
    match output {
        RegressionOutput::Sigmoid => flat.sigmoid(),
        RegressionOutput::Linear => flat,
    }
}

fn mix(gold: Tensor, teacher: Option<Tensor>, lambda: f64) -> Tensor {
    match teacher {
        Some(teacher) => gold * lambda + teacher * (1.0 - lambda),
        None => gold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t.to_kind(Kind::Double)).unwrap()
    }

    #[test]
    fn cross_entropy_mixes_probabilities_not_logits() {
        let logits = Tensor::from_slice(&[1.0f32, 0.0]).view([1, 2]);
        let teacher = Tensor::from_slice(&[0.0f32, 3.0]).view([1, 2]);
        let targets = Targets { gold: Tensor::from_slice(&[0.0f32]), teacher: Some(teacher) };
        let p1 = 1.0 / (1.0 + 3f64.exp());
        let target0 = 0.25 + 0.75 * p1;
        let log_z = (1f64.exp() + 1.0).ln();
        let expected = -(target0 * (1.0 - log_z) + (1.0 - target0) * -log_z);
        assert!((values(&cross_entropy(&logits, &targets, 0.25, 1.0))[0] - expected).abs() < 1e-6);
        let cooler = Tensor::from_slice(&[0.0f32, 6.0]).view([1, 2]);
        let targets = Targets { teacher: Some(cooler), ..targets };
        assert!((values(&cross_entropy(&logits, &targets, 0.25, 2.0))[0] - expected).abs() < 1e-6);
    }

    #[test]
    fn at_lambda_one_the_teacher_is_not_heard() {
        let logits = Tensor::from_slice(&[0.3f32, -0.2]).view([1, 2]);
        let with = |teacher| Targets { gold: Tensor::from_slice(&[1.0f32]), teacher };
        let taught = with(Some(Tensor::from_slice(&[5.0f32, -5.0]).view([1, 2])));
        let at_one = |targets: &Targets| values(&cross_entropy(&logits, targets, 1.0, 1.0));
        assert_eq!(at_one(&taught), at_one(&with(None)));
    }

    #[test]
    fn squared_error_applies_the_output_function_to_student_and_teacher() {
        let outputs = Tensor::from_slice(&[0.0f32]).view([1, 1]);
        let targets =
            Targets { gold: Tensor::from_slice(&[1.0f32]), teacher: Some(Tensor::from_slice(&[0.0f32]).view([1, 1])) };
        let at = |output| values(&squared_error(&outputs, &targets, 0.5, output))[0];
        assert!((at(RegressionOutput::Sigmoid) - 0.0625).abs() < 1e-7);
        assert!((at(RegressionOutput::Linear) - 0.25).abs() < 1e-7);
    }
}
