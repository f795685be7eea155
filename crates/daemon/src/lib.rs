//! Process shell of the daemons: config, signals, supervision, health, metrics, admin socket.
