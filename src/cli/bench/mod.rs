//! `barid bench`: benchmarks of two nodes on this machine, one metric a line.
//!
//! In scope: two node processes on loopback with mutual TLS, real files and fsync, under load from
//! this process as from a member's own systems; metrics named as in benchmarks of other brokers, so
//! that both can be compared; the bare store. Out of scope: judging the metrics. `docs/bench.md`
//! defines each.
//!
//! Publisher, both nodes and subscriber share the machine. A rate that ends in `.drained` counts
//! until both index databases have applied everything; the others count at the commit.

mod load;
mod measure;
mod pair;
mod priority;

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Context, Exit, Failure};
use crate::store::bench::{self as store, BenchOptions, ms, per, percentile, rate};
use load::{Published, Publisher, Subscriber, Until};
use measure::{cpu_seconds, loopback_bytes, median, resident_mib, resident_peak_mib};
use pair::{Pair, Side, followed};

/// Focal point that publishes and reads.
const READER: &str = "situation-room";
/// Rate of the open-loop benchmarks.
const FIXED_RATE_PER_SECOND: u64 = 500;
/// Bulletins of an open-loop benchmark.
const FIXED_RATE_COUNT: u64 = 3_000;
/// Subscribers that have stopped reading.
const STOPPED_SUBSCRIBERS: usize = 100;
/// Stopped subscribers that share one connection.
const STOPPED_PER_CONNECTION: usize = 10;
/// Number of comparisons of publishing with and without stopped subscribers.
const STOPPED_ROUNDS: usize = 3;

/// Members that are down. The node retries the connection to each of them.
const PEERS_DOWN: u16 = 100;
/// Number of comparisons of publishing with one peer down and with many down.
const PEERS_DOWN_ROUNDS: usize = 3;

/// Arguments of `barid bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// What to measure; everything if nothing is named.
    #[arg(value_name = "PART", value_enum)]
    parts: Vec<Part>,
    /// Duration of each publish benchmark in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Bulletins of the end-to-end flood.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    messages: u64,
    /// Bulletins that B misses and catches up on.
    #[arg(long, value_name = "COUNT", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..))]
    catchup: u64,
    /// Bulletins that B misses and catches up on in the memory, disk and priority benchmarks.
    #[arg(long, value_name = "COUNT", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    history: u64,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Publishing to A alone.
    Publish,
    /// From a call at A to a subscriber of B, at 500/s.
    Live,
    /// As fast as A accepts bulletins, until a subscriber of B has all.
    Flood,
    /// Catch-up of B after it was down.
    Catchup,
    /// Memory, disk and network use of a long catch-up.
    History,
    /// Urgent bulletins, alone and while a backlog is sent to B.
    Priority,
    /// Publishing beside subscribers that have stopped reading.
    Readers,
    /// Publishing while a hundred other members are down.
    PeersDown,
    /// The bare store and the bare commit log.
    Store,
}

/// Prints metrics as they are measured.
struct Metrics<'a> {
    context: &'a Context,
}

impl Metrics<'_> {
    fn put(&self, name: &str, value: f64, unit: &str) -> Result<(), Failure> {
        let name = format!("barid.{name}");
        if self.context.output.is_json() {
            return self.context.output.json(&json!({"name": name, "value": value, "unit": unit}));
        }
        let digits = if value >= 1_000.0 { 0 } else { 4 };
        self.context.output.line(&format!("{name} {value:.digits$} {unit}"))
    }

    fn latencies(&self, name: &str, times: &mut [Duration]) -> Result<(), Failure> {
        self.put(&format!("{name}p50"), ms(percentile(times, 50)), "ms")?;
        self.put(&format!("{name}p99"), ms(percentile(times, 99)), "ms")
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new("bench").because(error)
}

pub(super) fn run(context: &Context, args: &BenchArgs) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| failed(&error))?;
    let bench = Bench { args, metrics: Metrics { context } };
    runtime.block_on(bench.run())?;
    Ok(Exit::Ok)
}

struct Bench<'a> {
    args: &'a BenchArgs,
    metrics: Metrics<'a>,
}

impl Bench<'_> {
    fn wanted(&self, part: Part) -> bool {
        self.args.parts.is_empty() || self.args.parts.contains(&part)
    }

    async fn run(&self) -> Result<(), Failure> {
        if self.wanted(Part::Publish) {
            self.publish().await?;
        }
        if [Part::Live, Part::Flood, Part::Catchup, Part::History].into_iter().any(|part| self.wanted(part)) {
            self.pair().await?;
        }
        if self.wanted(Part::Priority) {
            self.priority().await?;
        }
        if self.wanted(Part::Readers) {
            self.readers().await?;
        }
        if self.wanted(Part::PeersDown) {
            self.peers_down().await?;
        }
        if self.wanted(Part::Store) {
            self.store()?;
        }
        Ok(())
    }

    fn for_a_while(&self) -> Until {
        Until { count: u64::MAX, spent: Duration::from_secs(self.args.seconds) }
    }

    /// Measures publishing to A alone.
    async fn publish(&self) -> Result<(), Failure> {
        let mut pair = Pair::make()?;
        pair.start(Side::A)?;
        pair.until(Side::A, "publishing", |status| status.publishing == "yes").await?;
        let mut publisher = Publisher::new(pair.connect(Side::A, READER)?, 1);
        publisher.stream(64, 0, Until { count: 2_000, spent: Duration::from_secs(1) }).await?;
        for in_flight in [1, 64, 1_024] {
            let name = format!("publish_inflight{in_flight}");
            let (cpu, begun) = (cpu_seconds(pair.pid(Side::A)), Instant::now());
            let published = publisher.stream(in_flight, 0, self.for_a_while()).await?;
            let caught_up = pair.caught_up().await? - begun;
            self.published(&name, published, caught_up, cpu_seconds(pair.pid(Side::A)) - cpu)?;
        }
        for in_flight in [1, 64] {
            let name = format!("publish_unary{in_flight}");
            let (cpu, begun) = (cpu_seconds(pair.pid(Side::A)), Instant::now());
            let published = publisher.unary(in_flight, self.for_a_while()).await?;
            let caught_up = pair.caught_up().await? - begun;
            self.published(&name, published, caught_up, cpu_seconds(pair.pid(Side::A)) - cpu)?;
        }
        let until = Until { count: FIXED_RATE_COUNT, spent: Duration::MAX };
        let mut fixed_rate = publisher.stream(usize::from(u16::MAX), FIXED_RATE_PER_SECOND, until).await?;
        self.metrics.latencies("publish_500ps.ack_", &mut fixed_rate.acks)
    }

    fn published(&self, name: &str, mut run: Published, caught_up: Duration, cpu: f64) -> Result<(), Failure> {
        self.metrics.put(&format!("{name}.rate"), rate(run.count, run.spent), "msg/s")?;
        self.metrics.put(&format!("{name}.rate.drained"), rate(run.count, caught_up), "msg/s")?;
        self.metrics.latencies(&format!("{name}.ack_"), &mut run.acks)?;
        self.metrics.put(&format!("{name}.server_cpu"), per(cpu * 1e3, run.count), "cpu_s/1000msg")
    }

    /// Measures replication: A publishes, B follows.
    async fn pair(&self) -> Result<(), Failure> {
        let mut pair = Pair::make()?;
        pair.start_both().await?;
        let mut publisher = Publisher::new(pair.connect(Side::A, READER)?, 2);
        let warm = Subscriber::open(pair.connect(Side::B, READER)?, false).await?;
        publisher.stream(64, 0, Until { count: 500, spent: Duration::MAX }).await?;
        warm.take(500).await?;
        let mut held = 500;
        if self.wanted(Part::Live) {
            held += self.live(&pair, &mut publisher).await?;
        }
        if self.wanted(Part::Flood) {
            held += self.flood(&pair, &mut publisher).await?;
        }
        if self.wanted(Part::Catchup) {
            held += self.catchup(&mut pair, &mut publisher, "catchup", self.args.catchup).await?;
            let (reader, begun) = (Subscriber::open(pair.connect(Side::B, READER)?, true).await?, Instant::now());
            reader.take(held).await?;
            self.metrics.put("replay_on_b.rate", rate(held, begun.elapsed()), "msg/s")?;
        }
        if self.wanted(Part::History) {
            held += self.catchup(&mut pair, &mut publisher, "history", self.args.history).await?;
            self.disk(&mut pair, held)?;
        }
        Ok(())
    }

    fn cpu_of(pair: &Pair) -> f64 {
        cpu_seconds(pair.pid(Side::A)) + cpu_seconds(pair.pid(Side::B))
    }

    async fn live(&self, pair: &Pair, publisher: &mut Publisher) -> Result<u64, Failure> {
        let until = Until { count: FIXED_RATE_COUNT, spent: Duration::MAX };
        let reader = Subscriber::open(pair.connect(Side::B, READER)?, false).await?;
        let cpu = Self::cpu_of(pair);
        let reading = tokio::spawn(reader.take(FIXED_RATE_COUNT));
        let published = publisher.stream(usize::from(u16::MAX), FIXED_RATE_PER_SECOND, until).await?;
        let received = reading.await.map_err(|error| failed(&error))??;
        let cpu = Self::cpu_of(pair) - cpu;
        self.metrics.latencies("e2e_500ps.", &mut latencies(&published, &received))?;
        self.metrics.put("e2e_500ps.servers_cpu", per(cpu * 1e3, FIXED_RATE_COUNT), "cpu_s/1000msg")?;
        Ok(FIXED_RATE_COUNT)
    }

    async fn flood(&self, pair: &Pair, publisher: &mut Publisher) -> Result<u64, Failure> {
        let count = self.args.messages;
        let reader = Subscriber::open(pair.connect(Side::B, READER)?, false).await?;
        let reading = tokio::spawn(reader.take(count));
        let (cpu, begun) = (Self::cpu_of(pair), Instant::now());
        let published = publisher.stream(1_024, 0, Until { count, spent: Duration::MAX }).await?;
        let received = reading.await.map_err(|error| failed(&error))??;
        let spent = received.last().map_or(Duration::ZERO, |(_, at)| *at - begun);
        let caught_up = pair.caught_up().await? - begun;
        self.metrics.put("e2e_flood.rate", rate(count, spent), "msg/s")?;
        self.metrics.put("e2e_flood.rate.drained", rate(count, caught_up), "msg/s")?;
        self.metrics.put("e2e_flood.publish_rate", rate(count, published.spent), "msg/s")?;
        self.metrics.put("e2e_flood.p50", ms(percentile(&mut latencies(&published, &received), 50)), "ms")?;
        self.metrics.put("e2e_flood.servers_cpu", per((Self::cpu_of(pair) - cpu) * 1e3, count), "cpu_s/1000msg")?;
        self.memory("e2e_flood", pair)?;
        Ok(count)
    }

    fn memory(&self, name: &str, pair: &Pair) -> Result<(), Failure> {
        for (side, letter) in [(Side::A, 'a'), (Side::B, 'b')] {
            self.metrics.put(&format!("{name}.rss_{letter}"), resident_mib(pair.pid(side)), "MiB")?;
            self.metrics.put(&format!("{name}.rss_peak_{letter}"), resident_peak_mib(pair.pid(side)), "MiB")?;
        }
        Ok(())
    }

    /// Measures catch-up: stops B, publishes `count` bulletins at A, and starts B again.
    async fn catchup(
        &self,
        pair: &mut Pair,
        publisher: &mut Publisher,
        name: &str,
        count: u64,
    ) -> Result<u64, Failure> {
        pair.caught_up().await?;
        pair.stop(Side::B)?;
        publisher.stream(1_024, 0, Until { count, spent: Duration::MAX }).await?;
        pair.caught_up().await?;
        let all = pair.operator(Side::A)?.status().await?.own.unwrap_or_default().size;
        let (before, cpu, wire) = (all - count, cpu_seconds(pair.pid(Side::A)), loopback_bytes());
        let begun = Instant::now();
        pair.start(Side::B)?;
        let mut first = 0;
        let first_at = pair.until(Side::B, "following", |status| followed(status) > before).await?;
        if let Ok(status) = pair.operator(Side::B)?.status().await {
            first = followed(&status);
        }
        let counted_at = Instant::now();
        let done = pair.until(Side::B, "caught up", |status| followed(status) >= all).await?;
        let wire = loopback_bytes() - wire;
        let caught_up = pair.caught_up().await?;
        let cpu = cpu_seconds(pair.pid(Side::A)) - cpu + cpu_seconds(pair.pid(Side::B));
        let put = |metric: &str, value, unit| self.metrics.put(&format!("{name}.{metric}"), value, unit);
        put("rate_since_start_of_b", rate(count, done - begun), "msg/s")?;
        put("rate_since_start_of_b.drained", rate(count, caught_up - begun), "msg/s")?;
        put("delay_to_first", ms(first_at - begun), "ms")?;
        if first < all {
            put("rate_since_first", rate(all - first, done - counted_at), "msg/s")?;
        }
        put("servers_cpu", per(cpu * 1e3, count), "cpu_s/1000msg")?;
        put("wire", per(wire as f64, count), "B/msg")?;
        self.memory(name, pair)?;
        Ok(count)
    }

    fn disk(&self, pair: &mut Pair, held: u64) -> Result<(), Failure> {
        for (side, letter) in [(Side::A, 'a'), (Side::B, 'b')] {
            pair.stop(side)?;
            let bytes = pair.disk_bytes(side)?;
            for (what, bytes) in [("log", bytes.log as f64), ("index", bytes.index_db as f64)] {
                self.metrics.put(&format!("disk_{letter}.{what}"), per(bytes, held), "B/msg")?;
            }
        }
        Ok(())
    }

    /// Measures publishing with 1,024 in flight, alternately with and without subscribers that have
    /// stopped reading.
    async fn readers(&self) -> Result<(), Failure> {
        let mut pair = Pair::make()?;
        pair.start(Side::A)?;
        pair.until(Side::A, "publishing", |status| status.publishing == "yes").await?;
        let mut publisher = Publisher::new(pair.connect(Side::A, READER)?, 3);
        publisher.stream(1_024, 0, self.for_a_while()).await?;
        let mut ratios = Vec::new();
        for _ in 0..STOPPED_ROUNDS {
            let without = publisher.stream(1_024, 0, self.for_a_while()).await?;
            let mut stopped = Vec::new();
            for _ in 0..STOPPED_SUBSCRIBERS / STOPPED_PER_CONNECTION {
                let channel = pair.connect(Side::A, READER)?;
                for _ in 0..STOPPED_PER_CONNECTION {
                    stopped.push(Subscriber::open(channel.clone(), true).await?);
                }
            }
            let with = publisher.stream(1_024, 0, self.for_a_while()).await?;
            drop(stopped);
            ratios.push(rate(with.count, with.spent) / rate(without.count, without.spent));
        }
        self.metrics.put("stopped_subscribers.publish_ratio", median(&mut ratios), "ratio")?;
        self.metrics.put("stopped_subscribers.rss_a", resident_mib(pair.pid(Side::A)), "MiB")
    }

    /// Measures publishing with 1,024 in flight, alternately by a node with one peer, which is
    /// down, and by a node with a hundred and one.
    async fn peers_down(&self) -> Result<(), Failure> {
        let (mut few, mut many) = (Pair::make()?, Pair::make_among(PEERS_DOWN)?);
        let (mut ratios, mut rates, mut resident) = (Vec::new(), Vec::new(), (0.0, 0.0));
        for _ in 0..PEERS_DOWN_ROUNDS {
            let without = self.publish_by(&mut few).await?;
            let with = self.publish_by(&mut many).await?;
            ratios.push(with.0 / without.0);
            rates.push(with.0);
            resident = (without.1, with.1);
        }
        self.metrics.put("peers_down.publish", median(&mut rates), "msg/s")?;
        self.metrics.put("peers_down.publish_ratio", median(&mut ratios), "ratio")?;
        self.metrics.put("peers_down.rss_a_one_down", resident.0, "MiB")?;
        self.metrics.put("peers_down.rss_a", resident.1, "MiB")
    }

    /// Starts A while all its peers are down, measures, and stops it. Returns the publishing rate
    /// and the resident memory in MiB.
    async fn publish_by(&self, pair: &mut Pair) -> Result<(f64, f64), Failure> {
        pair.start(Side::A)?;
        pair.until(Side::A, "publishing", |status| status.publishing == "yes").await?;
        let mut publisher = Publisher::new(pair.connect(Side::A, READER)?, 4);
        publisher.stream(1_024, 0, self.for_a_while()).await?;
        let published = publisher.stream(1_024, 0, self.for_a_while()).await?;
        let resident = resident_mib(pair.pid(Side::A));
        pair.stop(Side::A)?;
        Ok((rate(published.count, published.spent), resident))
    }

    fn store(&self) -> Result<(), Failure> {
        let folder = tempfile::tempdir().map_err(|error| failed(&error))?;
        let mut lines = Vec::new();
        store::run(folder.path(), &BenchOptions::default(), &mut lines).map_err(|error| failed(&error))?;
        for line in String::from_utf8_lossy(&lines).lines() {
            let mut columns = line.split(' ');
            if let (Some(name), Some(Ok(value)), Some(unit)) =
                (columns.next(), columns.next().map(str::parse), columns.next())
            {
                self.metrics.put(name, value, unit)?;
            }
        }
        Ok(())
    }
}

/// Returns the time from the publisher's call to the subscriber's receipt, for each bulletin that
/// both have.
fn latencies(published: &Published, received: &[(u64, Instant)]) -> Vec<Duration> {
    let of = |(index, at): &(u64, Instant)| {
        let place = usize::try_from(index.checked_sub(published.first_index)?).ok()?;
        published.sent.get(place).map(|sent| *at - *sent)
    };
    received.iter().filter_map(of).collect()
}
