"""Load generators that run as processes of their own, beside wrk."""
