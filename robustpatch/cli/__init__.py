"""Parts that all command lines share: refusals on one line, exit statuses, text fit for a terminal."""
