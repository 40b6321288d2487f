use std::sync::atomic::AtomicI64;

use types::{Environment, NewKey};
use uuid::Uuid;

use super::*;

/// A live key that may use the scopes.
pub(crate) fn entry(scopes: &[&str]) -> Entry {
    let id = |n| Uuid::from_u128(n);
    let owner = Owner::Organisation(OrgId::new(id(1)));
    Entry {
        key: KeyId::new(id(2)),
        org: OrgId::new(id(1)),
        user: UserId::new(id(3)),
        test: false,
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        active: true,
        revoked: false,
        expires_at: None,
        rate: None,
        allow: Vec::new(),
        version: 1,
        limiter: Arc::default(),
        account: Arc::new(Account::new(owner)),
        quotas: Vec::new(),
        touched: AtomicI64::new(0),
        read_at: 0,
    }
}

/// Puts a key into memory, as read just now, and returns it as a caller presents it.
pub(crate) fn know(keyring: &Keyring, mut entry: Entry) -> NewKey {
    // The first word on changes forgets everything.
    keyring.informed(1);
    let key = NewKey::from_random(Environment::Production, &[7; 28]);
    let hash = keyring.hash(&key.presented());
    entry.read_at = keyring.now();
    keyring.known.insert(hash, Arc::new(entry));
    key
}
