//! The orders of a training stage: one an epoch, from the step that the ranks are at to the last.

use std::collections::VecDeque;

use bam_cluster::plan::TrainStage;
use bam_cluster::protocol::{ToRank, TrainOrder};

/// All orders from `next_step` on. A checkpoint is due after every `every_steps` steps and after the last one.
pub fn orders(stage: &TrainStage, next_step: u64, every_steps: u64) -> Vec<TrainOrder> {
    let total = stage.schedule.total_steps;
    let mut orders = vec![];
    let mut first_step = next_step;
    while first_step < total {
        let epoch = stage.epoch_of(first_step);
        let end_step = ((epoch + 1) * stage.steps_per_epoch).min(total);
        let is_due = |done: &u64| done.is_multiple_of(every_steps) || *done == total;
        orders.push(TrainOrder {
            epoch,
            first_step,
            end_step,
            lambda_first: stage.schedule.lambda(first_step),
            lambda_last: stage.schedule.lambda(end_step - 1),
            commit_at: (first_step + 1..=end_step).filter(is_due).collect(),
        });
        first_step = end_step;
    }
    orders
}

/// Gives one order after another.
#[derive(Debug)]
pub struct OrderBook {
    waiting: VecDeque<TrainOrder>,
    /// Where the order that is being carried out ends.
    end_step: Option<u64>,
}

impl OrderBook {
    /// The orders, none given yet.
    pub fn new(orders: Vec<TrainOrder>) -> Self {
        OrderBook { waiting: orders.into(), end_step: None }
    }

    /// What to tell rank 0 now: the next order, or that there are no more.
    pub fn next(&mut self) -> ToRank {
        let order = self.waiting.pop_front();
        self.end_step = order.as_ref().map(|o| o.end_step);
        order.map_or(ToRank::Finish, ToRank::Train)
    }

    /// What to tell rank 0 when it reports `step`: something only at the end of an order.
    pub fn after(&mut self, step: u64) -> Option<ToRank> {
        (self.end_step == Some(step + 1)).then(|| self.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bam_cluster::config::Recipe;
    use bam_cluster::plan::{Plan, StageWork, TaskSize};

    /// Two epochs of five steps.
    fn student() -> TrainStage {
        let text = "name: x\nmodel: { path: m }\ndata: { glue: g, tasks: [rte] }\n\
                    train: { multi: { epochs: 2, batch_size: 10 } }\n";
        let recipe: Recipe = serde_norway::from_str(text).unwrap();
        let plan =
            Plan::derive(&recipe, &[TaskSize { task: "rte".into(), train: 50, dev: 5, further: Default::default() }]);
        let StageWork::Train(stage) = plan.stage("student").unwrap().work.clone() else { panic!() };
        stage
    }

    #[test]
    fn every_epoch_is_an_order_and_lambda_rises() {
        let orders = orders(&student(), 0, 4);
        let spans: Vec<_> = orders.iter().map(|o| (o.epoch, o.first_step, o.end_step)).collect();
        assert_eq!(spans, [(0, 0, 5), (1, 5, 10)]);
        assert_eq!((orders[0].lambda_first, orders[1].lambda_last), (0.0, 0.9));
        assert_eq!((orders[0].commit_at.as_slice(), orders[1].commit_at.as_slice()), (&[4][..], &[8, 10][..]));
    }

    #[test]
    fn a_resumed_run_goes_on_in_the_middle_of_an_epoch() {
        let orders = orders(&student(), 8, 4);
        assert_eq!(orders.len(), 1);
        assert_eq!((orders[0].first_step, orders[0].commit_at.as_slice()), (8, &[10][..]));
        assert!(super::orders(&student(), 10, 4).is_empty());
    }

    #[test]
    fn the_next_order_follows_the_last_step_and_finish_the_last_order() {
        let mut book = OrderBook::new(orders(&student(), 0, 100));
        assert!(matches!(book.next(), ToRank::Train(o) if o.epoch == 0));
        assert_eq!(book.after(3), None);
        assert!(matches!(book.after(4), Some(ToRank::Train(o)) if o.epoch == 1));
        assert_eq!(book.after(9), Some(ToRank::Finish));
        assert_eq!(book.after(9), None);
        assert_eq!(OrderBook::new(vec![]).next(), ToRank::Finish);
    }
}
