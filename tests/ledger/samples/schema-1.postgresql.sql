-- A ledger of schema 1, as version 0.1.0 of November 2026 wrote it.
CREATE TABLE feishu_mail_app (
	id SERIAL NOT NULL, 
	base_url TEXT NOT NULL, 
	app TEXT NOT NULL, 
	calls INTEGER NOT NULL, 
	per DOUBLE PRECISION NOT NULL, 
	spacing DOUBLE PRECISION NOT NULL, 
	grace DOUBLE PRECISION NOT NULL, 
	margin DOUBLE PRECISION NOT NULL, 
	reserve INTEGER NOT NULL, 
	last DOUBLE PRECISION, 
	pauses INTEGER NOT NULL, 
	pause_until DOUBLE PRECISION, 
	pause_reason TEXT, 
	probe TEXT, 
	probe_lapses DOUBLE PRECISION, 
	smooth_until DOUBLE PRECISION, 
	unreachable_since DOUBLE PRECISION, 
	unreachable_times INTEGER NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (base_url, app)
);
CREATE TABLE feishu_mail_schema (
	id SERIAL NOT NULL, 
	version INTEGER NOT NULL, 
	time DOUBLE PRECISION NOT NULL, 
	monotonic DOUBLE PRECISION NOT NULL, 
	boot TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE feishu_mail_closure (
	app_id INTEGER NOT NULL, 
	scope TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	until TEXT NOT NULL, 
	ends DOUBLE PRECISION, 
	mark TEXT, 
	PRIMARY KEY (app_id, scope), 
	FOREIGN KEY(app_id) REFERENCES feishu_mail_app (id)
);
CREATE TABLE feishu_mail_draft (
	app_id INTEGER NOT NULL, 
	user_key TEXT NOT NULL, 
	mailbox_key TEXT NOT NULL, 
	draft_id TEXT NOT NULL, 
	state TEXT NOT NULL, 
	doubtful BOOLEAN NOT NULL, 
	turn TEXT, 
	calls INTEGER NOT NULL, 
	message_id TEXT, 
	thread_id TEXT, 
	log_id TEXT, 
	code INTEGER, 
	error TEXT, 
	changed DOUBLE PRECISION NOT NULL, 
	PRIMARY KEY (app_id, user_key, mailbox_key, draft_id), 
	FOREIGN KEY(app_id) REFERENCES feishu_mail_app (id)
);
CREATE INDEX feishu_mail_draft_state ON feishu_mail_draft (app_id, state, changed);
CREATE INDEX ix_feishu_mail_draft_turn ON feishu_mail_draft (turn);
CREATE TABLE feishu_mail_lock (
	app_id INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	key TEXT NOT NULL, 
	turn TEXT, 
	taken DOUBLE PRECISION NOT NULL, 
	lapses DOUBLE PRECISION NOT NULL, 
	open_at DOUBLE PRECISION, 
	cooling DOUBLE PRECISION, 
	strikes INTEGER NOT NULL, 
	PRIMARY KEY (app_id, kind, key), 
	FOREIGN KEY(app_id) REFERENCES feishu_mail_app (id)
);
CREATE INDEX ix_feishu_mail_lock_turn ON feishu_mail_lock (turn);
CREATE TABLE feishu_mail_permit (
	turn TEXT NOT NULL, 
	app_id INTEGER NOT NULL, 
	holder TEXT NOT NULL, 
	taken DOUBLE PRECISION NOT NULL, 
	lapses DOUBLE PRECISION NOT NULL, 
	ended DOUBLE PRECISION, 
	PRIMARY KEY (turn), 
	FOREIGN KEY(app_id) REFERENCES feishu_mail_app (id)
);
CREATE INDEX ix_feishu_mail_permit_app_id ON feishu_mail_permit (app_id);
CREATE TABLE feishu_mail_token (
	app_id INTEGER NOT NULL, 
	user_key TEXT NOT NULL, 
	access_token TEXT, 
	expires DOUBLE PRECISION, 
	lifetime DOUBLE PRECISION, 
	refresh_token TEXT, 
	refresh_expires DOUBLE PRECISION, 
	scope TEXT, 
	lease TEXT, 
	lease_lapses DOUBLE PRECISION, 
	PRIMARY KEY (app_id, user_key), 
	FOREIGN KEY(app_id) REFERENCES feishu_mail_app (id)
);
INSERT INTO feishu_mail_app (id, base_url, app, calls, per, spacing, grace, margin, reserve, last, pauses, pause_until, pause_reason, probe, probe_lapses, smooth_until, unreachable_since, unreachable_times) VALUES (1, 'https://open.feishu.cn', 'cli_x', 10, 60.0, 0.0, 10.0, 0.1, 0, 1000.0, 0, NULL, NULL, NULL, NULL, NULL, NULL, 0);
INSERT INTO feishu_mail_app (id, base_url, app, calls, per, spacing, grace, margin, reserve, last, pauses, pause_until, pause_reason, probe, probe_lapses, smooth_until, unreachable_since, unreachable_times) VALUES (2, 'https://open.feishu.cn', 'cli_b', 10, 60.0, 0.0, 10.0, 0.1, 0, 1000.0, 0, NULL, NULL, NULL, NULL, NULL, NULL, 0);
INSERT INTO feishu_mail_schema (id, version, time, monotonic, boot) VALUES (1, 1, 0.0, 1000.0, 'x');
INSERT INTO feishu_mail_closure (app_id, scope, reason, until, ends, mark) VALUES (1, 'user:bob', '{"text": "1236007: the daily number of emails sent by the user exceeds the limit (log id log7). The user has sent all the mail a day allows. Go on tomorrow, or ask the administrator for more.", "log_id": "log7", "code": 1236007, "msg": "the daily number of emails sent by the user exceeds the limit", "http_status": 429}', 'HOUR', 4600.0, NULL);
INSERT INTO feishu_mail_closure (app_id, scope, reason, until, ends, mark) VALUES (1, 'user:carol', '{"text": "99991679: the user has not granted the required scope (log id log7). Let the user authorize the app again, with the scope (mail:user_mailbox.message:send to send drafts, mail:user_mailbox.message:readonly to list them).", "log_id": "log7", "code": 99991679, "msg": "the user has not granted the required scope", "http_status": 401}', 'REOPEN', NULL, NULL);
INSERT INTO feishu_mail_closure (app_id, scope, reason, until, ends, mark) VALUES (1, 'mailbox:gone@x', '{"text": "1234013: user mailbox not found or user mailbox not active (log id log7). Check the mailbox address, and that the mailbox is active.", "log_id": "log7", "code": 1234013, "msg": "user mailbox not found or user mailbox not active", "http_status": 404}', 'REOPEN', NULL, NULL);
INSERT INTO feishu_mail_closure (app_id, scope, reason, until, ends, mark) VALUES (1, 'mailbox:off@x', '{"text": "nothing was sent: the mailbox does not allow automated sending (off). Open the draft at https://mail.example.com/d and send it there, or change the mailbox''s setting.", "log_id": null, "reason": "off", "reference": "https://mail.example.com/d"}', 'REOPEN', NULL, NULL);
INSERT INTO feishu_mail_closure (app_id, scope, reason, until, ends, mark) VALUES (1, 'user:gina', '{"text": "99991668: invalid user access token (log id log9). The token is wrong or has expired. Get a new user_access_token for this user.", "log_id": "log9", "code": 99991668, "msg": "invalid user access token", "http_status": 401}', 'TOKEN', NULL, 'fingerprint');
INSERT INTO feishu_mail_closure (app_id, scope, reason, until, ends, mark) VALUES (2, 'app', '{"text": "99991403: this month''s API call quota has been exceeded (log id log7). The app has used up its API calls of this month. Ask the administrator to raise the plan.", "log_id": "log7", "code": 99991403, "msg": "this month''s API call quota has been exceeded", "http_status": 400}', 'HOUR', 4600.0, NULL);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (1, 'alice', 'me/alice', 'sent', 'sent', FALSE, NULL, 1, 'm1', 't1', 'log1', NULL, NULL, 1795831001.455834);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (1, 'alice', 'me/alice', 'failed', 'failed', FALSE, NULL, 1, NULL, NULL, 'log7', 1236003, '1236003: the number of recipients exceeds the limit (log id log7). Take recipients out of the draft (the limit is 500) or split it, then send it again.', 1795831001.4857519);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (1, 'ann', 'ann@x', 'lost', 'waiting', TRUE, NULL, 1, NULL, NULL, NULL, NULL, 'no answer came back: the connection broke', 1795831001.523641);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (1, '很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很75c305ba3d1edb7af7adb6ce24752ac8be67797b2c62d77afbf1604227922abb', 'long@x', '很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很75c305ba3d1edb7af7adb6ce24752ac8be67797b2c62d77afbf1604227922abb', 'sent', FALSE, NULL, 1, 'm1', 't1', 'log1', NULL, NULL, 1795831001.5537996);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (1, 'bob', 'me/bob', 'quota', 'failed', FALSE, NULL, 1, NULL, NULL, 'log7', 1236007, '1236007: the daily number of emails sent by the user exceeds the limit (log id log7). The user has sent all the mail a day allows. Go on tomorrow, or ask the administrator for more.', 1795831001.6680126);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (1, 'carol', 'me/carol', 'scope', 'failed', FALSE, NULL, 1, NULL, NULL, 'log7', 99991679, '99991679: the user has not granted the required scope (log id log7). Let the user authorize the app again, with the scope (mail:user_mailbox.message:send to send drafts, mail:user_mailbox.message:readonly to list them).', 1795831001.690421);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (1, 'dora', 'gone@x', 'gone', 'failed', FALSE, NULL, 1, NULL, NULL, 'log7', 1234013, '1234013: user mailbox not found or user mailbox not active (log id log7). Check the mailbox address, and that the mailbox is active.', 1795831001.7088022);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (1, 'emil', 'off@x', 'off', 'failed', FALSE, NULL, 1, NULL, NULL, NULL, NULL, 'nothing was sent: the mailbox does not allow automated sending (off). Open the draft at https://mail.example.com/d and send it there, or change the mailbox''s setting.', 1795831001.7256348);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (1, 'fred', 'me/fred', 'slow', 'waiting', FALSE, NULL, 1, NULL, NULL, 'log7', 1236010, '1236010: mail quota limit (log id log7). The system slows this user''s mail down. Send it later, or more slowly.', 1795831001.745774);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (1, 'hugo', 'me/hugo', 'flying', 'in_flight', FALSE, 'a9ef63c8073a4acb9c58fde688be9b5b', 1, NULL, NULL, NULL, NULL, NULL, 1795831001.7754788);
INSERT INTO feishu_mail_draft (app_id, user_key, mailbox_key, draft_id, state, doubtful, turn, calls, message_id, thread_id, log_id, code, error, changed) VALUES (2, 'alice', 'me/alice', 'spent', 'failed', FALSE, NULL, 1, NULL, NULL, 'log7', 99991403, '99991403: this month''s API call quota has been exceeded (log id log7). The app has used up its API calls of this month. Ask the administrator to raise the plan.', 1795831001.9489331);
INSERT INTO feishu_mail_lock (app_id, kind, key, turn, taken, lapses, open_at, cooling, strikes) VALUES (1, 'user', 'ann', NULL, 1000.0, 1045.0, 1010.0, NULL, 0);
INSERT INTO feishu_mail_lock (app_id, kind, key, turn, taken, lapses, open_at, cooling, strikes) VALUES (1, 'mailbox', 'ann@x', NULL, 1000.0, 1045.0, 1010.0, NULL, 0);
INSERT INTO feishu_mail_lock (app_id, kind, key, turn, taken, lapses, open_at, cooling, strikes) VALUES (1, 'user', 'fred', NULL, 1000.0, 1045.0, 1001.0, 1001.0, 1);
INSERT INTO feishu_mail_lock (app_id, kind, key, turn, taken, lapses, open_at, cooling, strikes) VALUES (1, 'user', 'hugo', 'a9ef63c8073a4acb9c58fde688be9b5b', 1000.0, 1045.0, NULL, NULL, 0);
INSERT INTO feishu_mail_lock (app_id, kind, key, turn, taken, lapses, open_at, cooling, strikes) VALUES (1, 'mailbox', 'me/hugo', 'a9ef63c8073a4acb9c58fde688be9b5b', 1000.0, 1045.0, NULL, NULL, 0);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('ed1cba453f5e4cc8aac739de4f2e6721', 1, 'vm:26886', 1000.0, 1045.0, 1000.0);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('94b68e9480d848e0991076045ff93906', 1, 'vm:26886', 1000.0, 1045.0, 1000.0);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('b63bf56aff6f4f2f86cf7d22011e878d', 1, 'vm:26886', 1000.0, 1045.0, 1010.0);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('b61b4ee5faf84b4ba1949770915585aa', 1, 'vm:26886', 1000.0, 1045.0, 1000.0);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('5c31360e8d3e48f588f2a82fd009ed77', 1, 'vm:26886', 1000.0, 1045.0, 1000.0);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('677fae7cb3954db488914e886608a181', 1, 'vm:26886', 1000.0, 1045.0, 1000.0);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('5eccfb8a666e463fb0d47a441139a5c1', 1, 'vm:26886', 1000.0, 1045.0, 1000.0);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('16c56a4c60f7428aa4f111901d439b50', 1, 'vm:26886', 1000.0, 1045.0, 1000.0);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('72bebd3393d34db0b547d08607cafc58', 1, 'vm:26886', 1000.0, 1045.0, 1000.0);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('a9ef63c8073a4acb9c58fde688be9b5b', 1, 'vm:26886', 1000.0, 1045.0, NULL);
INSERT INTO feishu_mail_permit (turn, app_id, holder, taken, lapses, ended) VALUES ('63c980136797495484fada9ed83809bb', 2, 'vm:26886', 1000.0, 1045.0, 1000.0);
INSERT INTO feishu_mail_token (app_id, user_key, access_token, expires, lifetime, refresh_token, refresh_expires, scope, lease, lease_lapses) VALUES (1, 'alice', 'u-alice', 5000.0, 7200.0, 'r-alice', 9000.0, 'mail:user_mailbox.message:send offline_access', NULL, NULL);
INSERT INTO feishu_mail_token (app_id, user_key, access_token, expires, lifetime, refresh_token, refresh_expires, scope, lease, lease_lapses) VALUES (1, 'bob', 'u-bob', 6000.0, 7200.0, NULL, NULL, '', NULL, NULL);
SELECT setval(pg_get_serial_sequence('feishu_mail_app','id'), (SELECT max(id) FROM feishu_mail_app));
