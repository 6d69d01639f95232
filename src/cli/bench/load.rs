//! Load generators: publishers and subscribers that act as a member's own systems.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use barid_core::bulletin::BulletinId;
use barid_core::limits::MESSAGE_BYTES_MAX;
use barid_core::proto;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::failed;
use crate::cli::Failure;
use crate::rpc::focal_point_client::FocalPointClient;
use crate::store::bench::mixed;

/// Encoded body size of a benchmark bulletin, in bytes. Benchmarks of other brokers use the same
/// size.
pub(super) const BODY_BYTES: usize = 1_024;
/// Topic of urgent bulletins.
pub(super) const PRIORITY_TOPIC: &str = "information.urgent";

/// When to stop publishing: at the first limit that is reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until {
    /// Maximum number of bulletins.
    pub(super) count: u64,
    /// Maximum time.
    pub(super) spent: Duration,
}

/// Measurements of one publishing run.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// Bulletins with a receipt.
    pub(super) count: u64,
    /// Time from the first call to the last receipt.
    pub(super) spent: Duration,
    /// Time from call to receipt, one per bulletin.
    pub(super) acks: Vec<Duration>,
    /// When each bulletin was sent, in feed order from `first_index` on.
    pub(super) sent: Vec<Instant>,
    /// Feed index of the first bulletin.
    pub(super) first_index: u64,
}

/// A focal point's system with one connection.
pub(super) struct Publisher {
    client: FocalPointClient<Channel>,
    number: u64,
    priority: bool,
}

impl Publisher {
    pub(super) fn new(channel: Channel, number: u64) -> Self {
        Self { client: client(channel), number: number << 48, priority: false }
    }

    /// Makes every further bulletin urgent, on its own topic.
    pub(super) fn with_priority(self) -> Self {
        Self { priority: true, ..self }
    }

    fn draft(&mut self) -> proto::Draft {
        self.number += 1;
        let mut draft = draft(self.number);
        if let Some(header) = draft.header.as_mut().filter(|_| self.priority) {
            (header.topic, header.urgency) = (PRIORITY_TOPIC.into(), "Immediate".into());
        }
        draft
    }

    /// Publishes over one stream, with at most `in_flight` bulletins without a receipt, and at most
    /// `per_second` bulletins a second unless that is 0.
    pub(super) async fn stream(
        &mut self,
        in_flight: usize,
        per_second: u64,
        until: Until,
    ) -> Result<Published, Failure> {
        let mut publisher = self.apart();
        on_a_worker(async move { publisher.streaming(in_flight, per_second, until).await }).await
    }

    /// Publishes with unary calls, `in_flight` at a time.
    pub(super) async fn unary(&mut self, in_flight: usize, until: Until) -> Result<Published, Failure> {
        let mut publisher = self.apart();
        on_a_worker(async move { publisher.calling(in_flight, until).await }).await
    }

    /// Returns a publisher on the same connection with a separate range of numbers.
    fn apart(&mut self) -> Self {
        self.number += 1 << 32;
        Self { client: self.client.clone(), number: self.number, priority: self.priority }
    }

    async fn streaming(&mut self, in_flight: usize, per_second: u64, until: Until) -> Result<Published, Failure> {
        let (requests, outgoing) = mpsc::channel(1_024);
        let mut responses = self.client.publish_stream(ReceiverStream::new(outgoing)).await?.into_inner();
        let permits = Arc::new(Semaphore::new(in_flight));
        let sent = Arc::new(Mutex::new(Vec::<Instant>::new()));
        let reading = tokio::spawn({
            let (permits, sent) = (Arc::clone(&permits), Arc::clone(&sent));
            async move {
                let (mut acks, mut first_index) = (Vec::new(), None);
                while let Some(response) = responses.message().await? {
                    let now = Instant::now();
                    let sent = sent.lock();
                    for result in &response.results {
                        let receipt = match &result.outcome {
                            Some(proto::publish_result::Outcome::Published(published)) => published.receipt.as_ref(),
                            Some(proto::publish_result::Outcome::Error(rejected)) => {
                                return Err(Failure::new("bench").cause(rejected.message.clone()));
                            }
                            None => None,
                        };
                        let request = usize::try_from(result.request).ok().and_then(|n| sent.get(n));
                        let (Some(receipt), Some(request)) = (receipt, request) else {
                            return Err(Failure::new("bench").cause("a response without a receipt"));
                        };
                        first_index.get_or_insert(receipt.index);
                        acks.push(now - *request);
                    }
                    permits.add_permits(response.results.len());
                }
                Ok((acks, first_index.unwrap_or_default()))
            }
        });
        let begun = Instant::now();
        let mut count = 0;
        while count < until.count && begun.elapsed() < until.spent && !reading.is_finished() {
            if let Some(scheduled_ns) = (count * 1_000_000_000).checked_div(per_second) {
                tokio::time::sleep_until((begun + Duration::from_nanos(scheduled_ns)).into()).await;
            }
            let publish = proto::PublishRequest { draft: Some(self.draft()), wait_for: None };
            let Ok(permit) = permits.acquire().await else { break };
            permit.forget();
            let request = count;
            sent.lock().push(Instant::now());
            count += 1;
            if requests.send(proto::PublishStreamRequest { request, publish: Some(publish) }).await.is_err() {
                break;
            }
        }
        drop(requests);
        let (acks, first_index) = reading.await.map_err(|error| failed(&error))??;
        let spent = begun.elapsed();
        let sent = std::mem::take(&mut *sent.lock());
        Ok(Published { count: acks.len() as u64, spent, acks, sent, first_index })
    }

    async fn calling(&mut self, in_flight: usize, until: Until) -> Result<Published, Failure> {
        let begun = Instant::now();
        let mut waiting = VecDeque::new();
        let (mut acks, mut count) = (Vec::new(), 0);
        while count < until.count && begun.elapsed() < until.spent {
            if waiting.len() >= in_flight
                && let Some(call) = waiting.pop_front()
            {
                acks.push(ack_latency(call).await?);
            }
            let (mut client, draft) = (self.client.clone(), self.draft());
            count += 1;
            waiting.push_back(tokio::spawn(async move {
                let sent = Instant::now();
                client
                    .publish(proto::PublishRequest { draft: Some(draft), wait_for: None })
                    .await
                    .map(|_| sent.elapsed())
            }));
        }
        for call in waiting {
            acks.push(ack_latency(call).await?);
        }
        Ok(Published { count: acks.len() as u64, spent: begun.elapsed(), acks, ..Published::default() })
    }
}

/// Runs a publisher on a worker thread, where its connection runs, as a system of its own would.
/// The thread that waits for the whole benchmark would be woken for every receipt.
async fn on_a_worker<T: Send + 'static>(
    publishing: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    tokio::spawn(publishing).await.map_err(|error| failed(&error))?
}

async fn ack_latency(call: tokio::task::JoinHandle<Result<Duration, tonic::Status>>) -> Result<Duration, Failure> {
    Ok(call.await.map_err(|error| failed(&error))??)
}

/// A subscription that reads everything it receives.
pub(super) struct Subscriber {
    stream: tonic::Streaming<proto::SubscribeResponse>,
}

impl Subscriber {
    /// Subscribes from now on, or from the first offset on. The subscription is active when this
    /// returns.
    pub(super) async fn open(channel: Channel, from_start: bool) -> Result<Self, Failure> {
        let start = from_start.then_some(proto::subscribe_request::Start::After(0));
        let request = proto::SubscribeRequest { start, ..proto::SubscribeRequest::default() };
        let mut stream = client(channel).subscribe(request).await?.into_inner();
        if !from_start {
            stream.message().await?;
        }
        Ok(Self { stream })
    }

    /// Subscribes to one topic from now on.
    pub(super) async fn of_topic(channel: Channel, topic: &str) -> Result<Self, Failure> {
        let filter = proto::Filter { topics: vec![topic.to_owned()], ..proto::Filter::default() };
        let request = proto::SubscribeRequest { filter: Some(filter), ..proto::SubscribeRequest::default() };
        let mut stream = client(channel).subscribe(request).await?.into_inner();
        stream.message().await?;
        Ok(Self { stream })
    }

    /// Receives `count` bulletins and ends the subscription. Returns the feed index and the time of
    /// receipt of each.
    pub(super) async fn take(mut self, count: u64) -> Result<Vec<(u64, Instant)>, Failure> {
        self.next(count).await
    }

    /// Receives `count` bulletins; the subscription stays open.
    pub(super) async fn next(&mut self, count: u64) -> Result<Vec<(u64, Instant)>, Failure> {
        let mut received = Vec::new();
        while (received.len() as u64) < count {
            let Some(response) = self.stream.message().await? else {
                return Err(Failure::new("bench").cause("a subscription ended"));
            };
            if let Some(proto::subscribe_response::Event::Delivery(delivery)) = response.event {
                received.push((delivery.index, Instant::now()));
            }
        }
        Ok(received)
    }
}

fn client(channel: Channel) -> FocalPointClient<Channel> {
    FocalPointClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Returns an exercise report with a body of [`BODY_BYTES`] and a text unlike every other.
pub(super) fn draft(number: u64) -> proto::Draft {
    let at = prost_types::Timestamp { seconds: 1_750_000_000, nanos: 0 };
    let mut body = proto::Body {
        categories: vec!["Security".into()],
        certainty: "Observed".into(),
        texts: vec![proto::Text { language: "en".into(), headline: "EXERCISE".into(), ..proto::Text::default() }],
        content: Some(proto::body::Content::SituationReport(proto::SituationReport {
            period_start: Some(at),
            period_end: Some(at),
            observations: vec![proto::Observation {
                subject: "crossings".into(),
                count: Some(1),
                ..Default::default()
            }],
            outlook: String::new(),
        })),
        ..proto::Body::default()
    };
    // Two bytes for the description's length, one for its tag, one more for the length of the
    // enclosing text.
    let room = BODY_BYTES.saturating_sub(body.encoded_len() + 4);
    if let Some(text) = body.texts.first_mut() {
        text.description = random_text(number, room);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let random: [u8; 10] = std::array::from_fn(|index| mixed(number ^ index as u64).to_le_bytes()[0]);
    let header = proto::Header {
        kind: "situation-report".into(),
        id: BulletinId::new(u64::try_from(now.as_millis()).unwrap_or_default(), &random).uuid().to_string(),
        topic: "information.situation".into(),
        status: "Exercise".into(),
        msg_type: "Alert".into(),
        handling: Some(proto::Handling { tlp: "TLP:GREEN".into(), ..proto::Handling::default() }),
        urgency: "Expected".into(),
        severity: "Minor".into(),
        ..proto::Header::default()
    };
    proto::Draft { header: Some(header), body: Some(body) }
}

/// Returns `length` letters that do not compress: six random bits each.
fn random_text(number: u64, length: usize) -> String {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .";
    let letter = |n: usize, bits: u64| char::from(LETTERS[usize::try_from(bits >> (n * 6) & 63).unwrap_or_default()]);
    (0..length.div_ceil(10) as u64)
        .map(|block| mixed(number << 16 ^ block))
        .flat_map(|bits| (0..10).map(move |n| letter(n, bits)))
        .take(length)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn benchmark_body_is_1024_bytes() {
        for number in [1, 2, 1 << 41] {
            let draft = draft(number);
            assert_eq!(draft.body.map(|body| body.encoded_len()), Some(BODY_BYTES));
        }
        assert_ne!(draft(1).body, draft(2).body);
    }
}
