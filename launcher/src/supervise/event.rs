//! Everything that can happen while a stage runs, as messages to the dispatcher.

use std::net::SocketAddr;

use bam_cluster::protocol::{FromRank, Hello, channel};

use crate::backend::ProcessEvent;

/// Numbers connections; a rank that connects twice has two.
pub type ConnectionId = u64;

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A process that proved to know the secret said who it is.
    Joined {
        /// Its connection.
        connection: ConnectionId,
        /// Who it is.
        hello: Hello,
        /// To answer on.
        sender: channel::Sender,
    },
    /// A rank said something.
    Said {
        /// Its connection.
        connection: ConnectionId,
        /// What.
        message: FromRank,
    },
    /// A connection of somebody who had joined is over.
    Left {
        /// Its connection.
        connection: ConnectionId,
    },
    /// A stranger connected and was sent away.
    Refused {
        /// From where.
        from: SocketAddr,
        /// Why.
        reason: String,
    },
    /// What started the ranks printed a line or ended.
    Starter(ProcessEvent),
}
