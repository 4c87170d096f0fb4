//! A plan as programs read it.

use bam_cluster::plan::StageWork;
use serde_json::{Value, json};

use super::{drawn, steps};
use crate::forecast::Forecast;
use crate::project::Project;

/// What docs/json.md describes.
pub fn to_json(project: &Project, forecast: &Forecast) -> Value {
    let (recipe, shape) = (&project.recipe, &project.encoder.config);
    let tasks = project.tasks.iter().zip(project.plan.tasks.iter().zip(&project.lengths));
    let tasks = tasks.map(|(task, (size, lengths))| {
        let metrics: Vec<&str> = task.metrics.iter().map(|m| m.name()).collect();
        let outputs = task.kind.output_names();
        json!({ "task": task.name, "outputs": outputs, "metrics": metrics, "train": size.train, "dev": size.dev, "tokens": lengths })
    });
    let stages = project.plan.stages.iter().enumerate().map(|(i, stage)| {
        let seconds = forecast.stage_seconds.as_ref().map(|all| all[i]);
        let ranks = stage.ranks(&recipe.cluster);
        let mut value = json!({ "stage": stage.name, "ranks": ranks, "needs": stage.needs(), "seconds": seconds });
        if let StageWork::Train(train) = &stage.work {
            let draws = train.tasks.iter().zip(drawn(train)).map(|(task, [share, examples, epochs, loss_weight])| {
                json!({ "task": task, "share": share, "examples": examples, "epochs": epochs, "loss_weight": loss_weight })
            });
            let at = |step| {
                let s = &train.schedule;
                json!({ "step": step, "learning_rate": s.learning_rate(step), "lambda": s.lambda(step) })
            };
            value["training"] = json!({
                "epochs": train.settings.epochs,
                "batch_size": train.settings.batch_size,
                "steps": train.schedule.total_steps,
                "warmup_steps": train.schedule.warmup_steps,
                "layerwise_decay": train.layerwise_decay,
                "draws": draws.collect::<Vec<_>>(),
                "milestones": steps(&train.schedule).map(at),
            });
        }
        value
    });
    json!({
        "name": recipe.name,
        "mode": recipe.mode,
        "seed": recipe.seed,
        "trials": recipe.trials,
        "reproducible": recipe.reproducible,
        "virtual_shards": recipe.virtual_shards,
        "encoder": {
            "path": project.encoder.directory, "layers": shape.num_hidden_layers, "width": shape.hidden_size,
            "parameters": shape.parameters(),
        },
        "tasks": tasks.collect::<Vec<_>>(),
        "stages": stages.collect::<Vec<_>>(),
        "layout": forecast.layout,
        "trainings": forecast.trainings,
        "jobs": forecast.jobs,
        "disk": forecast.disk,
        "pace": forecast.pace,
        "seconds": forecast.seconds,
        "warnings": project.warnings.iter().chain(&forecast.warnings).collect::<Vec<_>>(),
        "problems": forecast.problems,
    })
}
