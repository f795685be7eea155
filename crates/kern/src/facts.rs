//! One look at a node's interfaces, addresses and default routes.
