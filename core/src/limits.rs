//! Every bound, with its reason. The unit comes last in a name.

/// Largest envelope that a node publishes or accepts in full. A larger one from a peer is accepted
/// as its digest, so that this limit can change.
pub const ENVELOPE_BYTES_MAX: usize = 1 << 20;
/// Largest encoded header. Routing must stay cheap, and a header must fit in every index.
pub const HEADER_BYTES_MAX: usize = 4 << 10;
/// Largest encoded header that is decoded. A later version may write larger ones, and this one must
/// still know their member.
pub const HEADER_READ_BYTES_MAX: usize = 64 << 10;
/// Entries in one commit. A larger group brings no gain and increases latency.
pub const COMMIT_ENTRIES_MAX: usize = 1_024;
/// Envelope bytes in one commit; one entry always fits.
pub const COMMIT_BYTES_MAX: usize = 1 << 20;
/// Entries in one batch on a link. The same as for a commit, because a batch is one commit at the
/// receiver.
pub const BATCH_ENTRIES_MAX: usize = COMMIT_ENTRIES_MAX;
/// Envelope bytes in one batch; one entry always fits.
pub const BATCH_BYTES_MAX: usize = COMMIT_BYTES_MAX;
/// Priority entries of one feed with status Actual that may be held ahead of its order: the urgent
/// entries of a day of crisis. Further entries wait for their feed to reach them, so that marking
/// everything urgent brings no advantage.
pub const PRIORITY_ENTRIES_MAX: usize = 1_024;
/// The same for entries of any other status. The limit is separate, so that exercises never take
/// capacity from Actual entries.
pub const PRIORITY_OTHERS_MAX: usize = 512;
/// How long an entry held ahead of its feed's order counts against the limits if the feed does not
/// reach it, in ms. A slow link catches up within a day, and a feed that never reaches the entry
/// must not block its lane for ever. The entry itself remains stored.
pub const PRIORITY_EXPIRES_MS: u64 = 24 * 3_600_000;
/// Envelope bytes with status Actual that may be in flight to one peer ahead of the order of their
/// feeds.
pub const PRIORITY_BYTES_MAX: usize = 4 << 20;
/// The same for entries of any other status.
pub const PRIORITY_OTHERS_BYTES_MAX: usize = PRIORITY_BYTES_MAX / 2;
/// Ranges of entries in one backfill request: small on a slow link, and many for one response.
pub const BACKFILL_RANGES_MAX: usize = 256;
/// Entries scanned for one backfill request, which bounds its cost whatever it names. The rest is
/// requested again.
pub const BACKFILL_SCAN_MAX: u64 = 8 * 1_024;
/// Largest signed note other than a roster. A checkpoint with 16 signatures of the largest size
/// that C2SP signed-note expects (ML-DSA-87, 4,627 bytes, 6 KiB in base64) and the longest names
/// fits.
pub const NOTE_BYTES_MAX: usize = 128 << 10;
/// Largest note assembled here from the signatures of other notes. Earlier versions do not read
/// larger ones.
pub const NOTE_WRITTEN_BYTES_MAX: usize = 64 << 10;
/// Signature lines read in one note (C2SP signed-note requires at least 16).
pub const NOTE_SIGNATURES_MAX: usize = 64;
/// Length of a note key's name in bytes. ML-DSA-44 cosignatures encode it with a length of one
/// byte.
pub const KEY_NAME_BYTES_MAX: usize = 255;
/// Ranges listed in one custody note: at most 63 bytes a line, so the note fits [`NOTE_BYTES_MAX`].
pub const CUSTODY_RANGES_MAX: usize = 1_000;
/// Largest tlog-proof: a checkpoint note, [`PROOF_HASHES_MAX`] lines of 45 bytes and the two lines
/// before them.
pub const TLOG_PROOF_BYTES_MAX: usize = NOTE_BYTES_MAX + (4 << 10);
/// Largest roster note: some hundred members with post-quantum keys. It fits in one message
/// together with the surrounding fields.
pub const ROSTER_BYTES_MAX: usize = 1 << 20;
/// Governors of one roster. Governors of two versions sign one note, which has at most
/// [`NOTE_SIGNATURES_MAX`] lines.
pub const GOVERNORS_MAX: usize = NOTE_SIGNATURES_MAX / 2;
/// Length of an endpoint in bytes: a DNS name and a port.
pub const ENDPOINT_BYTES_MAX: usize = 253 + 6;
/// Largest protobuf message on any stream: a full batch with its notes and proofs.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest revocation list accepted or forwarded, with some 20,000 certificates. One always fits
/// beside the notes of a `TreeHeads`.
pub const CRL_BYTES_MAX: usize = 1 << 20;
/// Parts of one frame on a link: its fields and those of nested messages. A full batch, with its
/// entries and its proof, has a third of them.
pub const FRAME_PARTS_MAX: usize = 16_384;
/// Hashes in one Merkle proof: trees have fewer than 2^63 leaves.
pub const PROOF_HASHES_MAX: usize = 64;
/// Evidence of an equivocation: two notes and a proof, in base64.
pub const EQUIVOCATION_BYTES_MAX: usize = 4 * NOTE_BYTES_MAX;
/// Largest evidence file: an envelope, its proofs, and a long chain of rosters.
pub const EVIDENCE_BYTES_MAX: usize = 64 << 20;
/// Parts of one evidence file: some hundred members' custody notes, and a long chain of rosters.
pub const EVIDENCE_PARTS_MAX: usize = 4_096;
/// Proofs in one evidence file, each for a different size: one per cosigner of a large exchange.
pub const EVIDENCE_PROOFS_MAX: usize = 256;
/// Length of a topic in bytes; fits in every index key.
pub const TOPIC_BYTES_MAX: usize = 128;
/// Labels in a topic.
pub const TOPIC_LABELS_MAX: usize = 8;
/// Topic filters in one request.
pub const FILTERS_MAX: usize = 64;
/// Encoded filter of a named subscription: the longest topics and names that one request can have,
/// each with its tag and length.
pub const FILTER_BYTES_MAX: usize = FILTERS_MAX * (TOPIC_BYTES_MAX + 4) + 64;
/// Encoded cursor of a subscription, as clients store it.
pub const CURSOR_BYTES_MAX: usize = 128;
/// Texts (languages) in one body.
pub const TEXTS_MAX: usize = 16;
/// References in one header.
pub const REFERENCES_MAX: usize = 16;
/// Members in `releasable_to`.
pub const RELEASABLE_MAX: usize = 256;
/// Areas, attachments or content lines in one body.
pub const LIST_MAX: usize = 256;
/// How far a client's time may be ahead of the node's clock, in seconds.
pub const CLOCK_AHEAD_SECONDS_MAX: i64 = 300;
/// Encoded head of one commit record: the digests, ids and notes of a full commit, and a roster.
pub const RECORD_HEAD_BYTES_MAX: usize = 16 << 20;
/// Notes, cursors or revocation lists in one commit, of each type: those that arrive while a commit
/// is synced.
pub const COMMIT_NOTES_MAX: usize = 4_096;
/// Ranges of a feed held only as digests that are reported at once: the number that fits in a
/// custody note of 64 KiB.
pub const NOT_HELD_RANGES_MAX: usize = 1_024;
/// Length of the name of a subscription or of a revocation authority in bytes; fits in every index
/// key.
pub const STORE_NAME_BYTES_MAX: usize = 512;
/// Author signatures in one envelope: one focal point and its superiors; reserved in format 1.
pub const AUTHOR_SIGNATURES_MAX: usize = 16;
/// Field errors in one rejection: enough to correct a draft, and the response stays small.
pub const FIELD_ERRORS_MAX: usize = 256;
/// Characters of a wrong value that a field error repeats.
pub const FOUND_CHARS_MAX: usize = 80;
/// Length of a kind's name, a language tag or a place code in bytes; fits in every index key.
pub const NAME_BYTES_MAX: usize = 64;
/// Length of an issuer in bytes: a SPIFFE path of some levels that leaves space for the rest of the
/// header.
pub const ISSUER_BYTES_MAX: usize = 256;
/// Characters of one incident's name.
pub const INCIDENT_CHARS_MAX: usize = 128;
/// Characters of a headline. CAP 1.2 recommends 160; texts in three scripts need some margin.
pub const HEADLINE_CHARS_MAX: usize = 250;
/// Characters of a short text field: a name, a place, a remark.
pub const LINE_CHARS_MAX: usize = 500;
/// Points of one polygon.
pub const POLYGON_POINTS_MAX: usize = 1_000;
/// Largest attachment named in a body; its bytes are transferred separately.
pub const ATTACHMENT_BYTES_MAX: u64 = 1 << 30;
/// Fields in one body and its parts: some 256 areas with 60 codes each. Decoded, each takes about a
/// hundred bytes.
pub const BODY_FIELDS_MAX: usize = 16_384;
