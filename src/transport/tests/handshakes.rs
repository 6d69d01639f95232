//! Handshake floods and stalled handshakes: other connections are still admitted.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::{Limits, Policy};
use super::sockets::{DEADLINE, PREFACE, Served, client, connect_as};
use super::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn stalled_handshake_times_out() {
    let world = World::new();
    let limits = Limits { handshake_time_max: Duration::from_millis(200), ..Limits::EXCHANGE };
    let served = Served::start(&world, Policy::Peers("ma.rabat.example".into()), limits).await;
    let mut stalled = TcpStream::connect(served.address).await.unwrap();
    // The beginning of a ClientHello.
    stalled.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    let mut rest = Vec::new();
    assert!(tokio::time::timeout(DEADLINE, stalled.read_to_end(&mut rest)).await.is_ok());
    assert_eq!(served.rejection_record().await.reason, "handshake-timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_do_not_block_new_handshakes() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();

    let world = World::new();
    // The time limit is out of reach: only the number of slots evicts.
    let limits = Limits { handshake_time_max: Duration::from_secs(3_600), ..Limits::EXCHANGE };
    let served = Served::start(&world, Policy::Peers("ma.rabat.example".into()), limits).await;
    let opening = (0..1_000).map(|_| async {
        let mut stream = TcpStream::connect(served.address).await?;
        stream.write_all(&[22, 3, 1, 2, 0, 1]).await?;
        io::Result::Ok(stream)
    });
    let half_open: Vec<_> = join_all(opening).await.into_iter().map(Result::unwrap).collect();
    let recorded = served.recorded(half_open.len() - limits.handshakes_max).await;
    assert!(
        recorded.iter().all(|rejection_record| rejection_record.reason == "handshake-evicted"),
        "{:?}",
        recorded.first()
    );
    let node = world.ly.issue("node", &[]).unwrap();
    for _ in 0..3 {
        connect_as(served.address, &node).await.unwrap();
    }
}

/// Opens `count` connections, each with these first bytes.
async fn opened(address: SocketAddr, count: usize, first: &[u8]) -> Vec<TcpStream> {
    let opening = (0..count).map(|_| async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(first).await?;
        io::Result::Ok(stream)
    });
    join_all(opening).await.into_iter().map(Result::unwrap).collect()
}

/// The handshake has sent its ClientHello and is slow. Meanwhile ten connections for each slot come
/// from the same address.
#[tokio::test(flavor = "multi_thread")]
async fn handshake_with_client_hello_completes_under_connection_flood() {
    let world = World::new();
    let limits = Limits { handshakes_max: 2, handshake_time_max: Duration::from_secs(3_600), ..Limits::EXCHANGE };
    let served = Served::start(&world, Policy::Peers("ma.rabat.example".into()), limits).await;
    let node = world.ly.issue("node", &[]).unwrap();
    let mut tls = ClientConnection::new(
        client(Some(&node), &[&rustls::version::TLS13]),
        ServerName::try_from("127.0.0.1").unwrap(),
    )
    .unwrap();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    let mut tcp = TcpStream::connect(served.address).await.unwrap();
    tcp.write_all(&hello).await.unwrap();
    tokio::time::timeout(DEADLINE, tcp.readable()).await.expect("its hello is answered").unwrap();

    let silent = opened(served.address, 80, &[]).await;
    let half_open = opened(served.address, 20, &[22, 3, 1, 2, 0, 1]).await;
    // Four times as many may be silent as may have begun.
    let recorded = served.recorded(silent.len() + half_open.len() - 5 * limits.handshakes_max).await;
    assert!(
        recorded.iter().all(|rejection_record| rejection_record.reason == "handshake-evicted"),
        "{:?}",
        recorded.first()
    );

    let mut tcp = tcp.into_std().unwrap();
    tcp.set_nonblocking(false).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    let accepted = tokio::task::spawn_blocking(move || {
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        stream.write_all(PREFACE)?;
        let mut header = [0; 9];
        stream.read_exact(&mut header)?;
        io::Result::Ok(header)
    });
    assert_eq!(accepted.await.unwrap().unwrap()[3], 4, "the first frame is SETTINGS");
    connect_as(served.address, &node).await.unwrap();
}
