//! How long an urgent bulletin takes from a call at A to a subscriber of B: on an idle pair, and while a backlog flows to B.

use std::time::{Duration, Instant};

use super::load::{Published, Publisher, Subscriber, URGENT_TOPIC, Until};
use super::measure::rate;
use super::pair::{Pair, Side, followed};
use super::{Bench, Failure, READER, failed, latencies};

/// Urgent bulletins a second.
const PER_SECOND: u64 = 100;
/// Urgent bulletins of the idle figure.
const IDLE_COUNT: u64 = 1_000;
/// Urgent bulletins between two looks at whether the backlog still flows.
const ROUND_COUNT: u64 = 50;

impl Bench<'_> {
    pub(super) async fn express(&self) -> Result<(), Failure> {
        let count = self.args.history;
        let mut pair = Pair::make()?;
        pair.start_both().await?;
        let mut urgent = Publisher::new(pair.connect(Side::A, READER)?, 4).urgent();
        let mut ordinary = Publisher::new(pair.connect(Side::A, READER)?, 5);
        let mut reader = Subscriber::of_topic(pair.connect(Side::B, READER)?, URGENT_TOPIC).await?;
        self.round(&mut urgent, &mut reader, 200).await?;
        let mut idle = self.round(&mut urgent, &mut reader, IDLE_COUNT).await?;
        drop(reader);

        pair.drained().await?;
        pair.stop(Side::B)?;
        ordinary.stream(1_024, 0, Until { count, spent: Duration::MAX }).await?;
        pair.drained().await?;
        let all = pair.operator(Side::A)?.status().await?.own.unwrap_or_default().size;
        pair.start(Side::B)?;
        pair.until(Side::B, "following", |status| followed(status) > all - count).await?;
        let mut reader = Subscriber::of_topic(pair.connect(Side::B, READER)?, URGENT_TOPIC).await?;
        let operator = pair.operator(Side::B)?;
        let (before, begun) = (followed(&operator.status().await?), Instant::now());
        let (mut loaded, mut held, mut at) = (Vec::new(), before, begun);
        loop {
            let taken = self.round(&mut urgent, &mut reader, ROUND_COUNT).await?;
            let now = followed(&operator.status().await?);
            // A round in which the backlog came to its end is not counted.
            if now >= all {
                break;
            }
            (held, at) = (now, Instant::now());
            loaded.extend(taken);
        }
        if loaded.is_empty() {
            return Err(
                Failure::new("bench").cause("the backlog was gone before anything could be measured: --history")
            );
        }
        self.figures.latencies("express.idle_", &mut idle)?;
        self.figures.latencies("express.backlog_", &mut loaded)?;
        #[allow(clippy::cast_precision_loss, reason = "a count of a measurement stays far below 2^52")]
        self.figures.put("express.backlog_count", loaded.len() as f64, "msg")?;
        self.figures.put("express.backlog_rate", rate(held - before, at - begun), "msg/s")
    }

    /// So many at a steady pace, and how long each took.
    async fn round(
        &self,
        publisher: &mut Publisher,
        reader: &mut Subscriber,
        count: u64,
    ) -> Result<Vec<Duration>, Failure> {
        let until = Until { count, spent: Duration::MAX };
        let publishing = publisher.stream(usize::from(u16::MAX), PER_SECOND, until);
        let (published, taken): (Result<Published, Failure>, _) = tokio::join!(publishing, reader.next(count));
        let times = latencies(&published?, &taken?);
        if times.len() as u64 == count { Ok(times) } else { Err(failed(&Missing)) }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("other bulletins came than were published")]
struct Missing;
