//! Every option: its names, its default, its help, where its value came from.
