//! TLS in front.

use std::{path::Path, sync::Arc};

use rustls::{
    ProtocolVersion, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Client, Front,
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, frame, hello, request},
    with_front,
};
use crate::listen::roll::Phase;

const FIRST: [&str; 2] = [
    include_str!("fixture/first.pem"),
    include_str!("fixture/first.key.pem"),
];
const SECOND: [&str; 2] = [
    include_str!("fixture/second.pem"),
    include_str!("fixture/second.key.pem"),
];

fn put(dir: &Path, [chain, key]: [&str; 2]) {
    std::fs::write(dir.join("chain.pem"), chain).expect("written");
    std::fs::write(dir.join("key.pem"), key).expect("written");
}

/// Runs a test with a front that shows the first certificate, from files in a folder.
fn with_tls(variables: &[(&str, &str)], test: impl AsyncFn(Front, &Path)) {
    let dir = tempfile::tempdir().expect("a folder");
    put(dir.path(), FIRST);
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (chain, key) = (path("chain.pem"), path("key.pem"));
    let files = [
        ("TOLLGATE_GATEWAY_TLS_CERTIFICATE_FILE", chain.as_str()),
        ("TOLLGATE_GATEWAY_TLS_KEY_FILE", key.as_str()),
    ];
    let variables = [&files, variables].concat();
    with_front(&variables, async |front| test(front, dir.path()).await);
}

impl Front {
    /// A connection with these protocols on offer, to a listener that shows this certificate.
    async fn secure(
        &self,
        protocols: &[&[u8]],
        certificate: [&str; 2],
    ) -> std::io::Result<Client<TlsStream<TcpStream>>> {
        self.secure_by(&[&TLS12, &TLS13], protocols, certificate)
            .await
    }

    /// The same, by one of these versions.
    async fn secure_by(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&[u8]],
        [chain, _]: [&str; 2],
    ) -> std::io::Result<Client<TlsStream<TcpStream>>> {
        self.refresh();
        let mut roots = rustls::RootCertStore::empty();
        let chain = CertificateDer::from_pem_slice(chain.as_bytes()).expect("a certificate");
        roots.add(chain).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("a protocol")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Client::new(connector.connect(name, stream).await?))
    }

    /// A call over HTTP/1.1.
    async fn call<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
        &self,
        client: &mut Client<S>,
    ) {
        self.refresh();
        client
            .send(self.request("GET /api/v1/echo/a", "").as_bytes())
            .await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        let got = self.upstream.take();
        assert!(
            got[0].fields.contains("\r\nx-forwarded-proto: https\r\n"),
            "{got:?}"
        );
    }
}

#[test]
fn the_listener_speaks_tls_and_takes_a_new_certificate_while_it_runs() {
    with_tls(&[], async |front, dir| {
        let chain = dir.join("chain.pem");
        let mut old = front.secure(&[b"http/1.1"], FIRST).await.expect("TLS");
        front.call(&mut old).await;
        let mut plain = front.secure(&[], FIRST).await.expect("TLS without ALPN");
        front.call(&mut plain).await;

        let mut client = front
            .secure(&[b"h2", b"http/1.1"], FIRST)
            .await
            .expect("TLS");
        let (_, session) = client.stream.get_ref();
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
        let head = request("GET", "/api/v1/echo/a", front.rig.key.reveal(), &[]);
        client.send(&hello(&[])).await;
        client
            .send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head))
            .await;
        let data = client.frame_that(|frame| frame.kind == DATA).await;
        assert_eq!(data.expect("an answer").content, b"ok");
        let got = front.upstream.take();
        assert!(
            got[0].fields.contains("\r\nx-forwarded-proto: https\r\n"),
            "{got:?}"
        );

        // Between the two files they do not belong together: the pair before goes on.
        std::fs::write(&chain, SECOND[0]).expect("written");
        assert!(front.secure(&[b"h2"], SECOND).await.is_err());
        put(dir, SECOND);
        while front.secure(&[b"h2"], SECOND).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(front.secure(&[b"h2"], FIRST).await.is_err());
        // Who was there before stays, awake or at rest.
        front
            .until(|front| front.hall.roll.count(Phase::Resting) >= 2)
            .await;
        front.call(&mut old).await;

        // Who does not speak TLS is told nothing, and harms nobody.
        let mut clear = front.connect().await;
        clear
            .send(front.request("GET /api/v1/echo/a", "").as_bytes())
            .await;
        assert_eq!(clear.answer().await, None);
        let mut new = front.secure(&[b"http/1.1"], SECOND).await.expect("TLS");
        front.call(&mut new).await;
    });
}

#[test]
fn who_does_not_read_over_tls_is_cut_and_frees_the_upstream() {
    let variables = [
        ("TOLLGATE_GATEWAY_STALL_SECONDS", "1"),
        ("TOLLGATE_GATEWAY_CLIENT_BYTES_PER_SECOND_MIN", "1000"),
    ];
    with_tls(&variables, async |front, _| {
        let mut client = front.secure(&[], FIRST).await.expect("TLS");
        client
            .send(front.request("GET /api/v1/echo/big", "").as_bytes())
            .await;
        front.upstream.until(|upstream| upstream.count() == 1).await;
        front
            .upstream
            .until(|upstream| upstream.connections() == 0)
            .await;
        front.until(|front| front.rig.records().len() == 1).await;
    });
}

/// What a client says first that knows no later version than this one; for 1.2 it is sound.
fn client_hello(version: u8) -> Vec<u8> {
    const EXTENSIONS: &[u8] = &[
        0, 10, 0, 4, 0, 2, 0, 23, // supported_groups: secp256r1
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 8, 0, 6, 4, 3, 4, 1, 8, 4, // signature_algorithms: ECDSA, RSA, RSA-PSS
        0, 23, 0, 0, // extended_master_secret
    ];
    let short = |length: usize| u16::try_from(length).expect("short").to_be_bytes();
    let mut body = vec![3, version];
    body.extend([7; 32]); // random
    body.push(0); // no session
    // ECDHE with ECDSA and RSA, by AES-GCM (1.2) and AES-CBC (1.0, 1.1).
    body.extend([0, 8, 0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x09, 0xc0, 0x13]);
    body.extend([1, 0]); // no compression
    body.extend(short(EXTENSIONS.len()));
    body.extend(EXTENSIONS);
    let mut message = vec![1, 0];
    message.extend(short(body.len()));
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(short(message.len()));
    record.extend(message);
    record
}

#[test]
fn tls_is_spoken_from_1_2_on() {
    with_tls(&[], async |front, _| {
        for (version, spoken) in [
            (&TLS12, ProtocolVersion::TLSv1_2),
            (&TLS13, ProtocolVersion::TLSv1_3),
        ] {
            let client = front.secure_by(&[version], &[], FIRST).await;
            let mut client = client.expect("TLS");
            let (_, session) = client.stream.get_ref();
            assert_eq!(session.protocol_version(), Some(spoken));
            front.call(&mut client).await;
        }
        const ALERT: u8 = 21;
        const PROTOCOL_VERSION: u8 = 70;
        const HANDSHAKE: u8 = 22;
        for (version, is_spoken) in [(1, false), (2, false), (3, true)] {
            let mut stream = TcpStream::connect(front.address).await.expect("connected");
            let hello = client_hello(version);
            stream.write_all(&hello).await.expect("sent");
            let mut told = [0; 7];
            stream.read_exact(&mut told).await.expect("an answer");
            match is_spoken {
                true => assert_eq!(told[0], HANDSHAKE, "{told:?}"),
                false => {
                    assert_eq!((told[0], told[6]), (ALERT, PROTOCOL_VERSION), "{told:?}");
                    let more = stream.read(&mut told).await;
                    assert!(matches!(more, Ok(0) | Err(_)), "it is over: {told:?}");
                }
            }
        }
    });
}
