//! Every bound, with its reason. Units stand last in a name.

/// Largest envelope that a node publishes or takes in full. A peer's larger one is taken as its digest, so that this can change.
pub const ENVELOPE_BYTES_MAX: usize = 1 << 20;
/// Largest encoded header: routing must stay cheap and a header must fit any index.
pub const HEADER_BYTES_MAX: usize = 4 << 10;
/// Largest encoded header that is read: a later version may write larger ones, and this one must still know whose they are.
pub const HEADER_READ_BYTES_MAX: usize = 64 << 10;
/// Entries in one commit: beyond this a group gains nothing and latency suffers.
pub const COMMIT_ENTRIES_MAX: usize = 1_024;
/// Envelope bytes in one commit; one entry always fits.
pub const COMMIT_BYTES_MAX: usize = 1 << 20;
/// Entries in one batch on a link, as a commit: a batch is one commit at the receiver.
pub const BATCH_ENTRIES_MAX: usize = COMMIT_ENTRIES_MAX;
/// Envelope bytes in one batch; one entry always fits.
pub const BATCH_BYTES_MAX: usize = COMMIT_BYTES_MAX;
/// Entries of one feed with status Actual that are held ahead of its order, by the express lane: urgent ones of a day of crisis. The others
/// wait their turn, so that one who calls everything urgent gains nothing by it.
pub const PRIORITY_ENTRIES_MAX: usize = 1_024;
/// Entries of any other status beside them: a room of their own, so that no exercise stands in the way of what is Actual.
pub const PRIORITY_OTHERS_MAX: usize = 512;
/// How long an entry that is held ahead of its feed's order takes a place there, in ms, where the feed does not come to it: a thin line catches up
/// within a day, and a feed that never comes to it must not hold its lane for ever. The entry stays held.
pub const PRIORITY_EXPIRES_MS: u64 = 24 * 3_600_000;
/// Envelope bytes with status Actual that may be on their way to one peer ahead of the order of their feeds, and not reached by it.
pub const PRIORITY_BYTES_MAX: usize = 4 << 20;
/// Those of any other status, beside them.
pub const PRIORITY_OTHERS_BYTES_MAX: usize = PRIORITY_BYTES_MAX / 2;
/// Ranges of entries in one request for content that is missing: small on a thin line, and many for one answer.
pub const BACKFILL_RANGES_MAX: usize = 256;
/// Entries that are looked at for one such request: it costs a bounded time, whatever it names. What is left is asked for again.
pub const BACKFILL_SCAN_MAX: u64 = 8 * 1_024;
/// Largest signed note other than a roster. A checkpoint with 16 signatures of the largest size that C2SP signed-note expects (ML-DSA-87,
/// 4,627 bytes, 6 KiB in base64) and the longest names fits.
pub const NOTE_BYTES_MAX: usize = 128 << 10;
/// Largest one that is put together here from other notes' signatures: earlier versions read no larger ones.
pub const NOTE_WRITTEN_BYTES_MAX: usize = 64 << 10;
/// Signature lines read in one note (C2SP signed-note asks for at least 16).
pub const NOTE_SIGNATURES_MAX: usize = 64;
/// Length of a note key's name in bytes: ML-DSA-44 cosignatures carry it with a length of one byte.
pub const KEY_NAME_BYTES_MAX: usize = 255;
/// Ranges listed in one custody note: at most 63 bytes a line, so the note fits [`NOTE_BYTES_MAX`].
pub const CUSTODY_RANGES_MAX: usize = 1_000;
/// Largest tlog-proof: a checkpoint note, [`PROOF_HASHES_MAX`] lines of 45 bytes and the two lines before them.
pub const TLOG_PROOF_BYTES_MAX: usize = NOTE_BYTES_MAX + (4 << 10);
/// Largest roster note: some hundred members with post-quantum keys. It fits a message with room for what stands around it.
pub const ROSTER_BYTES_MAX: usize = 1 << 20;
/// Governors of one roster: those of two versions sign one note, which has at most [`NOTE_SIGNATURES_MAX`] lines.
pub const GOVERNORS_MAX: usize = NOTE_SIGNATURES_MAX / 2;
/// Length of an endpoint in bytes: a DNS name and a port.
pub const ENDPOINT_BYTES_MAX: usize = 253 + 6;
/// Largest protobuf message on any stream: a full batch with its notes and proofs.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest revocation list taken or handed on, of some 20,000 certificates; one always fits beside the notes of a `TreeHeads`.
pub const CRL_BYTES_MAX: usize = 1 << 20;
/// Parts of one frame on a link: fields, and those of the messages in it. A full batch, with its entries and its proof, has a third of them.
pub const FRAME_PARTS_MAX: usize = 16_384;
/// Hashes in one Merkle proof: trees have fewer than 2^63 leaves.
pub const PROOF_HASHES_MAX: usize = 64;
/// Evidence of two histories: two notes and a proof, in base64.
pub const EQUIVOCATION_BYTES_MAX: usize = 4 * NOTE_BYTES_MAX;
/// Largest evidence file: an envelope, its proofs, and a long chain of rosters.
pub const EVIDENCE_BYTES_MAX: usize = 64 << 20;
/// Parts of one evidence file: some hundred members' custody notes, and a long chain of rosters.
pub const EVIDENCE_PARTS_MAX: usize = 4_096;
/// Proofs in one evidence file, each of another size: one per cosigner of a large exchange.
pub const EVIDENCE_PROOFS_MAX: usize = 256;
/// Length of a topic in bytes; fits every index key.
pub const TOPIC_BYTES_MAX: usize = 128;
/// Labels in a topic.
pub const TOPIC_LABELS_MAX: usize = 8;
/// Topic filters in one request.
pub const FILTERS_MAX: usize = 64;
/// Encoded filter of a named subscription: the longest topics and names that one request can have, each with its tag and length.
pub const FILTER_BYTES_MAX: usize = FILTERS_MAX * (TOPIC_BYTES_MAX + 4) + 64;
/// Encoded cursor of a subscription, as clients keep it.
pub const CURSOR_BYTES_MAX: usize = 128;
/// Texts (languages) in one body.
pub const TEXTS_MAX: usize = 16;
/// References in one header.
pub const REFERENCES_MAX: usize = 16;
/// Members in `releasable_to`.
pub const RELEASABLE_MAX: usize = 256;
/// Areas, attachments or content lines in one body.
pub const LIST_MAX: usize = 256;
/// How far ahead of the node's clock a client's time may be, in seconds (DESIGN §9).
pub const CLOCK_AHEAD_SECONDS_MAX: i64 = 300;
/// Encoded head of one commit record: the digests, ids and notes of a full commit, and a roster.
pub const RECORD_HEAD_BYTES_MAX: usize = 16 << 20;
/// Notes, cursors or revocation lists in one commit, of each sort: what comes in while a commit is synced.
pub const COMMIT_NOTES_MAX: usize = 4_096;
/// Ranges of a feed held only as digests that are told at once: what a custody note of 64 KiB can list.
pub const NOT_HELD_RANGES_MAX: usize = 1_024;
/// Length of a subscription's or a revocation authority's name in bytes; fits every index key.
pub const STORE_NAME_BYTES_MAX: usize = 512;
/// Author signatures in one envelope: one focal point and its superiors; reserved in format 1.
pub const AUTHOR_SIGNATURES_MAX: usize = 16;
/// Field errors in one refusal: enough to mend a draft by, and a refusal stays small.
pub const FIELD_ERRORS_MAX: usize = 256;
/// Characters of a wrong value that a refusal repeats.
pub const FOUND_CHARS_MAX: usize = 80;
/// Length of a kind's name, a language tag or a code of a place in bytes; fits every index key.
pub const NAME_BYTES_MAX: usize = 64;
/// Length of an issuer in bytes: a SPIFFE path of some levels leaves room for the rest of the header.
pub const ISSUER_BYTES_MAX: usize = 256;
/// Characters of one incident's name.
pub const INCIDENT_CHARS_MAX: usize = 128;
/// Characters of a headline; CAP 1.2 recommends 160, and three scripts need some air.
pub const HEADLINE_CHARS_MAX: usize = 250;
/// Characters of a short text field: a name, a place, a remark's line.
pub const LINE_CHARS_MAX: usize = 500;
/// Points of one polygon.
pub const POLYGON_POINTS_MAX: usize = 1_000;
/// Largest attachment named in a body; its bytes travel apart.
pub const ATTACHMENT_BYTES_MAX: u64 = 1 << 30;
/// Fields in one body and its parts: some 256 areas with 60 codes each; decoded they take about a hundred bytes apiece.
pub const BODY_FIELDS_MAX: usize = 16_384;
