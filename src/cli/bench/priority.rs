//! Measures the time of an urgent bulletin from a call at A to a subscriber of B: on an idle pair,
//! and while a backlog is sent to B.

use std::time::{Duration, Instant};

use super::load::{PRIORITY_TOPIC, Publisher, Subscriber, Until};
use super::pair::{Pair, Side, followed};
use super::{Bench, Failure, READER, failed, latencies};
use crate::store::bench::rate;

/// Urgent bulletins per second.
const PER_SECOND: u64 = 100;
/// Urgent bulletins of the idle benchmark.
const IDLE_COUNT: u64 = 1_000;
/// Urgent bulletins between two checks whether the backlog is still being sent.
const ROUND_COUNT: u64 = 50;
/// Number of backlogs, one after the other. A single one ends before there are enough samples for a
/// 99th percentile.
const BACKLOGS: u64 = 5;

impl Bench<'_> {
    pub(super) async fn priority(&self) -> Result<(), Failure> {
        let count = self.args.history;
        let mut pair = Pair::make()?;
        pair.start_both().await?;
        let mut prioritized = Publisher::new(pair.connect(Side::A, READER)?, 4).with_priority();
        let mut ordinary = Publisher::new(pair.connect(Side::A, READER)?, 5);
        let mut reader = Subscriber::of_topic(pair.connect(Side::B, READER)?, PRIORITY_TOPIC).await?;
        (reader, _) = round(&mut prioritized, reader, 200).await?;
        let (reader, mut idle) = round(&mut prioritized, reader, IDLE_COUNT).await?;
        drop(reader);

        let (mut loaded, mut held, mut spent) = (Times::default(), 0, Duration::ZERO);
        for _ in 0..BACKLOGS {
            pair.caught_up().await?;
            pair.stop(Side::B)?;
            ordinary.stream(1_024, 0, Until { count, spent: Duration::MAX }).await?;
            pair.caught_up().await?;
            let all = pair.operator(Side::A)?.status().await?.own.unwrap_or_default().size;
            pair.start(Side::B)?;
            pair.until(Side::B, "following", |status| followed(status) > all - count).await?;
            let mut reader = Subscriber::of_topic(pair.connect(Side::B, READER)?, PRIORITY_TOPIC).await?;
            let operator = pair.operator(Side::B)?;
            let (before, begun) = (followed(&operator.status().await?), Instant::now());
            let mut last = (before, begun);
            loop {
                let received;
                (reader, received) = round(&mut prioritized, reader, ROUND_COUNT).await?;
                let now = followed(&operator.status().await?);
                // A round in which the backlog ended is not counted.
                if now >= all {
                    break;
                }
                last = (now, Instant::now());
                loaded.receipts.extend(received.receipts);
                loaded.delivered.extend(received.delivered);
            }
            held += last.0 - before;
            spent += last.1 - begun;
        }
        if loaded.delivered.is_empty() {
            return Err(
                Failure::new("bench").cause("the backlog was sent before anything could be measured: raise --history")
            );
        }
        self.metrics.latencies("priority.idle_", &mut idle.delivered)?;
        self.metrics.latencies("priority.idle_ack_", &mut idle.receipts)?;
        self.metrics.latencies("priority.backlog_", &mut loaded.delivered)?;
        self.metrics.latencies("priority.backlog_ack_", &mut loaded.receipts)?;
        self.metrics.put("priority.backlog_count", loaded.delivered.len() as f64, "msg")?;
        self.metrics.put("priority.backlog_rate", rate(held, spent), "msg/s")
    }
}

/// Publishes `count` bulletins at a steady rate and measures each. Publisher and subscriber run on
/// other threads than the one that waits for both.
async fn round(publisher: &mut Publisher, mut reader: Subscriber, count: u64) -> Result<(Subscriber, Times), Failure> {
    let reading = tokio::spawn(async move {
        let received = reader.next(count).await;
        (reader, received)
    });
    let until = Until { count, spent: Duration::MAX };
    let published = publisher.stream(usize::from(u16::MAX), PER_SECOND, until).await?;
    let (reader, received) = reading.await.map_err(|error| failed(&error))?;
    let delivered = latencies(&published, &received?);
    if delivered.len() as u64 != count {
        return Err(failed(&Missing));
    }
    Ok((reader, Times { receipts: published.acks, delivered }))
}

/// Times of each bulletin: until the receipt at A, and until delivery at B.
#[derive(Default)]
struct Times {
    receipts: Vec<Duration>,
    delivered: Vec<Duration>,
}

#[derive(Debug, thiserror::Error)]
#[error("the received bulletins differ from the published ones")]
struct Missing;
