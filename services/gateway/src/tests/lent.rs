//! Calls that need credits of a wallet, through the whole edge.

use std::{collections::BTreeSet, future::ready, sync::Arc, time::Duration};

use futures_util::stream;
use parking_lot::Mutex;
use proto::wallet::v1::{Answer, Ask};
use tokio::{sync::Semaphore, task::LocalSet, time::timeout};

use super::rig::{self, COST, Rig};
use crate::{
    journal::SystemDisk,
    lender::tests::{Bank, wallet},
};

const GET: &str = "GET /api/v1/echo/x HTTP/1.1";
const CLOSE: &str = "connection: close\r\n";
const ANSWER: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"];
/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(30);

/// A wallet that does not answer is not one that is empty. The call hears of it while it is still
/// being asked, and what was asked for pays a later call.
#[tokio::test]
async fn a_wallet_that_does_not_answer_is_unavailable_and_lends_to_the_next_call() {
    let (host, config) = rig::host(&[]).await;
    let (open, bank) = (Arc::new(Semaphore::new(0)), Bank::new(COST));
    let nonces: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let (gate, asked) = (Arc::clone(&open), Arc::clone(&nonces));
    let answer = move |asks: Vec<Ask>| {
        asked
            .lock()
            .extend(asks.iter().map(|ask| ask.nonce.clone()));
        let (gate, bank) = (Arc::clone(&gate), Arc::clone(&bank));
        stream::once(async move {
            drop(gate.acquire().await);
            let asks = (0..).zip(asks);
            let answered = asks.map(|(position, ask)| Answer {
                position,
                ..bank.lock().acquire(ask)
            });
            Ok(answered.collect())
        })
    };
    let wallet = wallet(answer, |_| ready(Ok(())));
    let scene = async {
        let mut accounts = Vec::new();
        let rig = Rig::on(Arc::new(SystemDisk), wallet, &host, &config, |entry| {
            entry.account.lease().expect("a lease").drain();
            accounts.push(Arc::clone(&entry.account));
        })
        .await;
        let account = accounts.pop().expect("one");
        let refused = rig.call(GET, CLOSE, &[]).await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(refused.contains("credits_unavailable"), "{refused}");
        assert!(
            account.turn.try_lock().is_err(),
            "the wallet is still asked"
        );
        open.add_permits(1);
        while account.in_hand() == 0 {
            tokio::task::yield_now().await;
        }
        let asked = nonces.lock().len();
        let answered = rig.call(GET, CLOSE, ANSWER).await;
        assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
        assert_eq!(nonces.lock().len(), asked, "admitted with what is in hand");
        let nonces: BTreeSet<Vec<u8>> = nonces.lock().drain(..).collect();
        assert_eq!(nonces.len(), 1, "it was asked with one nonce");
    };
    let scene = timeout(LIMIT, scene);
    let scene = LocalSet::new().run_until(scene).await;
    scene.expect("it ends");
}
