"""Pages for a browser: plain HTML, CSS and JavaScript in one file each, without a network."""
