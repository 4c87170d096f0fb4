//! Losses of single examples: cross-entropy and squared error against targets that are mixed from gold labels and a
//! teacher's predictions (BAM section 2.2).

use bam_cluster::config::RegressionOutput;
use tch::{Kind, Tensor};

/// What a task's examples in a micro-batch should become.
pub struct Targets {
    /// Class index, or score on the 0–1 scale: float32 [examples].
    pub gold: Tensor,
    /// The teachers' predictions ([`teacher_predictions`]): float32 [examples, outputs].
    pub teacher: Option<Tensor>,
}

/// What a task's teachers say together: the mean of their predictions. For classes these are softmax(logits/temperature),
/// for a score the head's output on the 0–1 scale; each teacher's outputs are [examples, outputs], and so is the result.
pub fn teacher_predictions(teachers: &[Tensor], classes: bool, temperature: f64, output: RegressionOutput) -> Tensor {
    let one = |outputs: &Tensor| match classes {
        true => (outputs / temperature).softmax(-1, Kind::Float),
        false => prediction(outputs, output).unsqueeze(-1),
    };
    let all: Vec<Tensor> = teachers.iter().map(one).collect();
    if let [only] = all.as_slice() {
        only.shallow_clone()
    } else {
        Tensor::stack(&all, 0).mean_dim(0, false, Kind::Float)
    }
}

/// Cross-entropy between λ·onehot(gold) + (1−λ)·teacher and softmax(logits). Targets are mixed in probability space.
/// `logits`: [examples, classes]; returns [examples].
pub fn cross_entropy(logits: &Tensor, targets: &Targets, lambda: f64) -> Tensor {
    let one_hot = targets.gold.to_kind(Kind::Int64).one_hot(logits.size()[1]).to_kind(Kind::Float);
    let target = mix(one_hot, targets.teacher.as_ref(), lambda);
    -(target * logits.log_softmax(-1, Kind::Float)).sum_dim_intlist([-1].as_slice(), false, Kind::Float)
}

/// Squared difference to λ·gold + (1−λ)·teacher's prediction. `outputs`: [examples, 1]; returns [examples].
pub fn squared_error(outputs: &Tensor, targets: &Targets, lambda: f64, output: RegressionOutput) -> Tensor {
    let teacher = targets.teacher.as_ref().map(|t| t.squeeze_dim(-1));
    let target = mix(targets.gold.shallow_clone(), teacher.as_ref(), lambda);
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

fn mix(gold: Tensor, teacher: Option<&Tensor>, lambda: f64) -> Tensor {
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

    fn matrix(values: &[f32], columns: i64) -> Tensor {
        Tensor::from_slice(values).view([-1, columns])
    }

    fn classes(teachers: &[Tensor], temperature: f64) -> Tensor {
        teacher_predictions(teachers, true, temperature, RegressionOutput::Sigmoid)
    }

    #[test]
    fn cross_entropy_mixes_probabilities_not_logits() {
        let logits = matrix(&[1.0, 0.0], 2);
        let p1 = 1.0 / (1.0 + 3f64.exp());
        let target0 = 0.25 + 0.75 * p1;
        let log_z = (1f64.exp() + 1.0).ln();
        let expected = -(target0 * (1.0 - log_z) + (1.0 - target0) * -log_z);
        for (teacher, temperature) in [([0.0, 3.0], 1.0), ([0.0, 6.0], 2.0)] {
            let teacher = classes(&[matrix(&teacher, 2)], temperature);
            let targets = Targets { gold: Tensor::from_slice(&[0.0f32]), teacher: Some(teacher) };
            assert!((values(&cross_entropy(&logits, &targets, 0.25))[0] - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn several_teachers_say_the_mean_of_their_probabilities() {
        let sure = matrix(&[0.0, 20.0, 0.0, 0.0], 2);
        let unsure = matrix(&[0.0, 0.0, 0.0, 3f32.ln()], 2);
        let both = values(&classes(&[sure, unsure], 1.0).flatten(0, -1));
        for (found, expected) in both.iter().zip([0.25, 0.75, 0.375, 0.625]) {
            assert!((found - expected).abs() < 1e-6, "{both:?}");
        }
        let scores = [matrix(&[0.0], 1), matrix(&[1.0], 1)];
        let linear = teacher_predictions(&scores, false, 1.0, RegressionOutput::Linear);
        assert_eq!((linear.size(), values(&linear.flatten(0, -1))), (vec![1, 1], vec![0.5]));
    }

    #[test]
    fn at_lambda_one_the_teacher_is_not_heard() {
        let logits = matrix(&[0.3, -0.2], 2);
        let with = |teacher| Targets { gold: Tensor::from_slice(&[1.0f32]), teacher };
        let taught = with(Some(classes(&[matrix(&[5.0, -5.0], 2)], 1.0)));
        let at_one = |targets: &Targets| values(&cross_entropy(&logits, targets, 1.0));
        assert_eq!(at_one(&taught), at_one(&with(None)));
    }

    #[test]
    fn squared_error_applies_the_output_function_to_student_and_teacher() {
        let outputs = matrix(&[0.0], 1);
        let at = |output| {
            let teacher = Some(teacher_predictions(&[matrix(&[0.0], 1)], false, 1.0, output));
            let targets = Targets { gold: Tensor::from_slice(&[1.0f32]), teacher };
            values(&squared_error(&outputs, &targets, 0.5, output))[0]
        };
        assert!((at(RegressionOutput::Sigmoid) - 0.0625).abs() < 1e-7);
        assert!((at(RegressionOutput::Linear) - 0.25).abs() < 1e-7);
    }
}
