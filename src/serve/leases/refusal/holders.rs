//! Who has what is in the way, in words.

use hooks::lease::Container;

use super::{Full, Held, Holder, Way, is_are, user};

impl Holder {
    /// `podman container web (3f2a1b2c3d4e, since 14:02, user ana)`
    fn text(&self, clock: &dyn Fn(u64) -> String) -> String {
        let Container { engine, name, id, uid, .. } = &self.container;
        let engine = engine.as_ref().map(|engine| format!("{engine} ")).unwrap_or_default();
        let name = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        let id: String = id.chars().take(12).collect();
        let user = user(self.user.as_deref(), *uid);
        let ending = if self.is_ending { ", ending" } else { "" };
        format!("{engine}container{name} ({id}, since {}, {user}{ending})", clock(self.since))
    }

    fn process_user(&self) -> String {
        self.container
            .process_uid
            .map_or("a user without a number here".to_owned(), |uid| format!("uid {uid}"))
    }
}

impl Held {
    pub(super) fn text(&self, clock: &dyn Fn(u64) -> String) -> String {
        let Self { device, way, holder } = self;
        let holder = holder.text(clock);
        match way {
            Way::Itself => format!("{device} is held by {holder}"),
            Way::Whole(whole) => format!("{device} cannot be had: {whole} is held as a whole by {holder}"),
            Way::Share(share) => {
                format!("{device} cannot be had: {share}, a part of it, is held by {holder}")
            }
            Way::OtherUser(whole) => {
                let user = self.holder.process_user();
                format!(
                    "{device} cannot be had: the MPS server of {whole} serves one user at a time, now {user} of {holder}"
                )
            }
            Way::OtherMode(whole) => format!(
                "{device} cannot be had: {whole} is shared with MPS and without by turns, now as it is for {holder}"
            ),
        }
    }

    pub(super) fn short(&self, clock: &dyn Fn(u64) -> String) -> String {
        let Self { device, way, holder } = self;
        let holder = holder.text(clock);
        match way {
            Way::Itself => format!("{device} by {holder}"),
            Way::Whole(whole) => format!("{whole} as a whole by {holder}"),
            Way::Share(share) => format!("{share} of {device} by {holder}"),
            Way::OtherUser(whole) => {
                let user = self.holder.process_user();
                format!("the MPS server of {whole}, which serves one user at a time, for {user} by {holder}")
            }
            Way::OtherMode(whole) => {
                format!("{whole}, shared with MPS and without by turns, by {holder}")
            }
        }
    }
}

impl Full {
    pub(super) fn text(&self, clock: &dyn Fn(u64) -> String) -> String {
        let Self { pool, asked, devices, free, waiting, held, more, .. } = self;
        let mut text = match (*free, *devices) {
            (0, 1) => format!("the one device of pool {pool} is held"),
            (0, _) => format!("all {devices} devices of pool {pool} are held"),
            (_, 1) => format!("the one device of pool {pool} is free"),
            _ => format!(
                "of {devices} devices of pool {pool} {free} {} free, {asked} asked for",
                is_are(*free)
            ),
        };
        let mut by: Vec<_> = held.iter().map(|held| held.short(clock)).collect();
        if *more > 0 {
            by.push(format!("{more} more"));
        }
        if let Some((last, others)) = by.split_last() {
            let and = if others.is_empty() { "" } else { " and " };
            text += &format!(": {}{and}{last}", others.join(", "));
        }
        match waiting {
            0 => text,
            1 => text + "; one container waits for it already",
            _ => text + &format!("; {waiting} containers wait for it already"),
        }
    }
}
