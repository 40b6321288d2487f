//! Journals of the dead in more than one place: brought there at once, or found later, when another
//! process has begun to bring the same journal to its end.

use std::{collections::BTreeSet, fs, path::Path};

use types::JournalId;

use super::{damage::folders, world::World};

/// So many of a thousand copies are found though nothing of another recovery is applied.
const FOUND_ANYWAY: usize = 20;

/// A copy that nobody has found yet.
pub(super) struct Shelved {
    journal: JournalId,
    /// Where it was copied from.
    from: usize,
    /// Records that it has.
    written: u64,
}

impl World {
    /// Brings what the dead have left to another place too, where the next life recovers it too.
    pub(super) fn copy(&mut self, from: usize) {
        let to = self.dice.below(self.slots.len());
        if from == to {
            return;
        }
        for place in [from, to] {
            self.end(place, "killed");
        }
        let there = folders(&self.slots[to].dir);
        for (journal, dir) in folders(&self.slots[from].dir) {
            if there.iter().any(|(known, _)| *known == journal) {
                continue;
            }
            copy_folder(&dir, &self.slots[to].dir);
            self.figures.copies += 1;
            self.note(format!("{journal} is copied from {from} to {to}"));
        }
    }

    /// A place is gone with the journals that are somewhere else too: what was done about them here
    /// ends there.
    pub(super) fn lose_copies(&mut self, place: usize) {
        let others = self.slots.iter().enumerate();
        let others = others.filter(|(index, _)| *index != place);
        let elsewhere: BTreeSet<JournalId> = others
            .flat_map(|(_, slot)| folders(&slot.dir))
            .map(|(journal, _)| journal)
            .collect();
        let here = folders(&self.slots[place].dir).into_iter();
        let copies: Vec<_> = here.filter(|(it, _)| elsewhere.contains(it)).collect();
        if copies.is_empty() {
            return;
        }
        self.end(place, "with its copies");
        for (journal, dir) in copies {
            fs::remove_dir_all(&dir).expect("removable");
            self.note(format!("{place}: has {journal} no more"));
        }
    }

    /// A gateway dies, and its journal is copied to where no process looks yet.
    pub(super) fn shelve(&mut self, from: usize) {
        let Some(running) = &self.slots[from].running else {
            return;
        };
        let journal = running.life.own.id();
        let written = running.life.own.journal.next_seq();
        self.end(from, "and its journal is copied");
        let own = folders(&self.slots[from].dir).into_iter();
        for (_, dir) in own.filter(|(id, _)| *id == journal) {
            copy_folder(&dir, &self.shelf_dir());
            self.shelf.push(Shelved {
                journal,
                from,
                written,
            });
        }
    }

    /// Another process finds a copy, and recovers it at once: best when something that a recovery
    /// has written is applied, and not all of it.
    pub(super) fn bring(&mut self, to: usize) {
        let wallet = self.consumers.iter().find(|it| it.name == "wallet");
        let wallet = wallet.expect("one of all");
        let is_begun = |it: &Shelved| it.from != to && it.written < wallet.watermark(it.journal);
        let anyway = self.dice.chance(FOUND_ANYWAY);
        let found = self.shelf.iter().position(is_begun);
        let Some(index) = found.or((anyway && !self.shelf.is_empty()).then_some(0)) else {
            return;
        };
        let journal = self.shelf.swap_remove(index).journal;
        let there = folders(&self.slots[to].dir);
        if there.iter().any(|(known, _)| *known == journal) {
            return;
        }
        self.end(to, "and is given a copy");
        let shelved = folders(&self.shelf_dir()).into_iter();
        for (_, dir) in shelved.filter(|(id, _)| *id == journal) {
            copy_folder(&dir, &self.slots[to].dir);
        }
        self.figures.copies += 1;
        self.start(to);
        let open = self.bank.retire(journal, self.wallet_time());
        self.note(format!(
            "{to}: recovers a copy of {journal}, open are {}",
            open.len()
        ));
        let (now, mutation) = (self.now, self.mutation);
        if let Some(running) = &mut self.slots[to].running {
            let fate = running.retired(journal, &open, now, mutation);
            self.died(to, fate.is_err());
        }
    }
}

fn copy_folder(dir: &Path, into: &Path) {
    let place = into.join(dir.file_name().expect("a name"));
    fs::create_dir_all(&place).expect("creatable");
    for entry in fs::read_dir(dir).expect("a folder") {
        let file = entry.expect("an entry").path();
        let copy = place.join(file.file_name().expect("a name"));
        fs::copy(&file, copy).expect("copied");
    }
}
