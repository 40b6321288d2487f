//! Upstreams over TLS: which protocol is spoken, and whom it is spoken with.

use std::{rc::Rc, sync::Arc, time::Duration};

use http::Version;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::upstreams::{Upstream, call, scene};

pub(crate) const TRUSTED: [&[u8]; 2] = [
    include_bytes!("../listen/tests/fixture/first.pem"),
    include_bytes!("../listen/tests/fixture/first.key.pem"),
];
const STRANGE: [&[u8]; 2] = [
    include_bytes!("../listen/tests/fixture/second.pem"),
    include_bytes!("../listen/tests/fixture/second.key.pem"),
];

/// Shows this certificate, and takes these protocols.
pub(crate) fn acceptor([chain, key]: [&[u8]; 2], protocols: &[&str]) -> TlsAcceptor {
    let chain = CertificateDer::from_pem_slice(chain).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(key).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("a protocol")
        .with_no_client_auth();
    let mut config = config.with_single_cert(vec![chain], key).expect("they fit");
    config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn an_upstream_over_tls_is_spoken_to_as_both_agree_and_only_if_it_is_the_one() {
    scene(&[], async |rig| {
        let both: &[&str] = &["h2", "http/1.1"];
        for (protocol, takes, spoken) in [
            ("http1", both, Some("HTTP/1.1")),
            ("auto", both, Some("HTTP/2.0")),
            ("auto", &["http/1.1"], Some("HTTP/1.1")),
            ("auto", &[], Some("HTTP/1.1")),
            ("h2", both, Some("HTTP/2.0")),
            ("h2", &["http/1.1"], None),
            ("h2", &[], None),
        ] {
            for (certificate, is_it) in [(TRUSTED, true), (STRANGE, false)] {
                let upstream = Upstream::behind(Some(acceptor(certificate, takes))).await;
                let port = upstream.address.port();
                rig.offer(upstream.address, |it| {
                    it.upstream_url = format!("https://localhost:{port}");
                    protocol.clone_into(&mut it.protocol);
                });
                for version in [Version::HTTP_11, Version::HTTP_2] {
                    let got = call(&rig, version, "").await.expect("an answer");
                    let case = format!("{protocol} {takes:?}: {got:?}");
                    match spoken.filter(|_| is_it) {
                        Some(spoken) => {
                            assert_eq!(got.status, 200, "{case}");
                            assert_eq!(got.header("x-version"), spoken, "{case}");
                        }
                        None => assert_eq!(got.status, 502, "{case}"),
                    }
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn who_wants_to_change_protocols_gets_a_connection_that_can() {
    scene(&[], async |rig| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let port = address.port();
        rig.offer(address, |it| {
            it.upstream_url = format!("https://localhost:{port}");
            "auto".clone_into(&mut it.protocol);
        });
        let mut client = TcpStream::connect(rig.address()).await.expect("connected");
        let key = rig.key.reveal();
        let asked = format!(
            "GET /api/v1/echo/x HTTP/1.1\r\nhost: edge\r\nx-api-key: {key}\r\n\
             connection: upgrade\r\nupgrade: websocket\r\n\r\n"
        );
        client.write_all(asked.as_bytes()).await.expect("sent");
        let (stream, _) = listener.accept().await.expect("a connection");
        let tls = acceptor(TRUSTED, &["h2", "http/1.1"]);
        let mut upstream = tls.accept(stream).await.expect("TLS");
        let agreed = upstream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(agreed.as_deref(), Some(&b"http/1.1"[..]));
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(upstream.read_u8().await.expect("a head"));
        }
        let switched = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                        upgrade: websocket\r\n\r\n";
        upstream.write_all(switched.as_bytes()).await.expect("sent");
        upstream.flush().await.expect("sent");
        let mut told = [0; 12];
        client.read_exact(&mut told).await.expect("an answer");
        assert_eq!(&told, b"HTTP/1.1 101");
    })
    .await;
}

/// Nobody knows yet what will be spoken: the first calls wait for who finds out.
#[tokio::test]
async fn first_calls_at_once_share_a_connection_where_they_can() {
    const CALLS: usize = 20;
    scene(&[], async |rig| {
        for (takes, connections) in [(&["h2", "http/1.1"][..], 1), (&["http/1.1"], CALLS)] {
            let upstream = Upstream::behind(Some(acceptor(TRUSTED, takes))).await;
            let port = upstream.address.port();
            rig.offer(upstream.address, |it| {
                it.upstream_url = format!("https://localhost:{port}");
                "auto".clone_into(&mut it.protocol);
            });
            upstream.gate.send_replace(false);
            let begin = |_| {
                let rig = Rc::clone(&rig);
                tokio::task::spawn_local(async move { call(&rig, Version::HTTP_11, "").await })
            };
            let calls: Vec<_> = (0..CALLS).map(begin).collect();
            // None has its answer before all were asked.
            while upstream.asked.get() < CALLS {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            upstream.gate.send_replace(true);
            for call in calls {
                let got = call.await.expect("no panic").expect("an answer");
                assert_eq!(got.status, 200, "{takes:?}");
            }
            assert_eq!(upstream.connections.get(), connections, "{takes:?}");
        }
    })
    .await;
}
