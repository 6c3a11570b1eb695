-- A ledger of schema 1, as version 0.1.0 of November 2026 wrote it.
BEGIN TRANSACTION;
CREATE TABLE feishu_mail_app (
	id INTEGER NOT NULL, 
	base_url TEXT NOT NULL, 
	app TEXT NOT NULL, 
	calls INTEGER NOT NULL, 
	per DOUBLE NOT NULL, 
	spacing DOUBLE NOT NULL, 
	grace DOUBLE NOT NULL, 
	margin DOUBLE NOT NULL, 
	reserve INTEGER NOT NULL, 
	last DOUBLE, 
	pauses INTEGER NOT NULL, 
	pause_until DOUBLE, 
	pause_reason TEXT, 
	probe TEXT, 
	probe_lapses DOUBLE, 
	smooth_until DOUBLE, 
	unreachable_since DOUBLE, 
	unreachable_times INTEGER NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (base_url, app)
);
INSERT INTO "feishu_mail_app" VALUES(1,'https://open.feishu.cn','cli_x',10,60.0,0.0,10.0,0.1,0,0.0,0,NULL,NULL,NULL,NULL,NULL,NULL,0);
INSERT INTO "feishu_mail_app" VALUES(2,'https://open.feishu.cn','cli_b',10,60.0,0.0,10.0,0.1,0,0.0,0,NULL,NULL,NULL,NULL,NULL,NULL,0);
CREATE TABLE feishu_mail_closure (
	app_id INTEGER NOT NULL, 
	scope TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	until TEXT NOT NULL, 
	ends DOUBLE, 
	mark TEXT, 
	PRIMARY KEY (app_id, scope), 
	FOREIGN KEY(app_id) REFERENCES feishu_mail_app (id)
);
INSERT INTO "feishu_mail_closure" VALUES(1,'user:bob','{"text": "1236007: the daily number of emails sent by the user exceeds the limit (log id log7). The user has sent all the mail a day allows. Go on tomorrow, or ask the administrator for more.", "log_id": "log7", "code": 1236007, "msg": "the daily number of emails sent by the user exceeds the limit", "http_status": 429}','HOUR',3600.0,NULL);
INSERT INTO "feishu_mail_closure" VALUES(1,'user:carol','{"text": "99991679: the user has not granted the required scope (log id log7). Let the user authorize the app again, with the scope (mail:user_mailbox.message:send to send drafts, mail:user_mailbox.message:readonly to list them).", "log_id": "log7", "code": 99991679, "msg": "the user has not granted the required scope", "http_status": 401}','REOPEN',NULL,NULL);
INSERT INTO "feishu_mail_closure" VALUES(1,'mailbox:gone@x','{"text": "1234013: user mailbox not found or user mailbox not active (log id log7). Check the mailbox address, and that the mailbox is active.", "log_id": "log7", "code": 1234013, "msg": "user mailbox not found or user mailbox not active", "http_status": 404}','REOPEN',NULL,NULL);
INSERT INTO "feishu_mail_closure" VALUES(1,'mailbox:off@x','{"text": "nothing was sent: the mailbox does not allow automated sending (off). Open the draft at https://mail.example.com/d and send it there, or change the mailbox''s setting.", "log_id": null, "reason": "off", "reference": "https://mail.example.com/d"}','REOPEN',NULL,NULL);
INSERT INTO "feishu_mail_closure" VALUES(1,'user:gina','{"text": "99991668: invalid user access token (log id log9). The token is wrong or has expired. Get a new user_access_token for this user.", "log_id": "log9", "code": 99991668, "msg": "invalid user access token", "http_status": 401}','TOKEN',NULL,'fingerprint');
INSERT INTO "feishu_mail_closure" VALUES(2,'app','{"text": "99991403: this month''s API call quota has been exceeded (log id log7). The app has used up its API calls of this month. Ask the administrator to raise the plan.", "log_id": "log7", "code": 99991403, "msg": "this month''s API call quota has been exceeded", "http_status": 400}','HOUR',3600.0,NULL);
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
	changed DOUBLE NOT NULL, 
	PRIMARY KEY (app_id, user_key, mailbox_key, draft_id), 
	FOREIGN KEY(app_id) REFERENCES feishu_mail_app (id)
);
INSERT INTO "feishu_mail_draft" VALUES(1,'alice','me/alice','sent','sent',0,NULL,1,'m1','t1','log1',NULL,NULL,1.79583099224551415444e+09);
INSERT INTO "feishu_mail_draft" VALUES(1,'alice','me/alice','failed','failed',0,NULL,1,NULL,NULL,'log7',1236003,'1236003: the number of recipients exceeds the limit (log id log7). Take recipients out of the draft (the limit is 500) or split it, then send it again.',1.7958309922553019524e+09);
INSERT INTO "feishu_mail_draft" VALUES(1,'ann','ann@x','lost','waiting',1,NULL,1,NULL,NULL,NULL,NULL,'no answer came back: the connection broke',1.79583099226647853853e+09);
INSERT INTO "feishu_mail_draft" VALUES(1,'很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很75c305ba3d1edb7af7adb6ce24752ac8be67797b2c62d77afbf1604227922abb','long@x','很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很很75c305ba3d1edb7af7adb6ce24752ac8be67797b2c62d77afbf1604227922abb','sent',0,NULL,1,'m1','t1','log1',NULL,NULL,1.795830992277033329e+09);
INSERT INTO "feishu_mail_draft" VALUES(1,'bob','me/bob','quota','failed',0,NULL,1,NULL,NULL,'log7',1236007,'1236007: the daily number of emails sent by the user exceeds the limit (log id log7). The user has sent all the mail a day allows. Go on tomorrow, or ask the administrator for more.',1.79583099228595876695e+09);
INSERT INTO "feishu_mail_draft" VALUES(1,'carol','me/carol','scope','failed',0,NULL,1,NULL,NULL,'log7',99991679,'99991679: the user has not granted the required scope (log id log7). Let the user authorize the app again, with the scope (mail:user_mailbox.message:send to send drafts, mail:user_mailbox.message:readonly to list them).',1.79583099229578614227e+09);
INSERT INTO "feishu_mail_draft" VALUES(1,'dora','gone@x','gone','failed',0,NULL,1,NULL,NULL,'log7',1234013,'1234013: user mailbox not found or user mailbox not active (log id log7). Check the mailbox address, and that the mailbox is active.',1.79583099230676889422e+09);
INSERT INTO "feishu_mail_draft" VALUES(1,'emil','off@x','off','failed',0,NULL,1,NULL,NULL,NULL,NULL,'nothing was sent: the mailbox does not allow automated sending (off). Open the draft at https://mail.example.com/d and send it there, or change the mailbox''s setting.',1.79583099231601166722e+09);
INSERT INTO "feishu_mail_draft" VALUES(1,'fred','me/fred','slow','waiting',0,NULL,1,NULL,NULL,'log7',1236010,'1236010: mail quota limit (log id log7). The system slows this user''s mail down. Send it later, or more slowly.',1.79583099232604503632e+09);
INSERT INTO "feishu_mail_draft" VALUES(1,'hugo','me/hugo','flying','in_flight',0,'bdd798d9dc90436bbe29bbf1cad410c1',1,NULL,NULL,NULL,NULL,NULL,1.79583099233321857456e+09);
INSERT INTO "feishu_mail_draft" VALUES(2,'alice','me/alice','spent','failed',0,NULL,1,NULL,NULL,'log7',99991403,'99991403: this month''s API call quota has been exceeded (log id log7). The app has used up its API calls of this month. Ask the administrator to raise the plan.',1.79583099235477447507e+09);
CREATE TABLE feishu_mail_lock (
	app_id INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	turn TEXT, 
	taken DOUBLE NOT NULL, 
	lapses DOUBLE NOT NULL, 
	open_at DOUBLE, 
	cooling DOUBLE, 
	strikes INTEGER NOT NULL, 
	PRIMARY KEY (app_id, kind, "key"), 
	FOREIGN KEY(app_id) REFERENCES feishu_mail_app (id)
);
INSERT INTO "feishu_mail_lock" VALUES(1,'user','ann',NULL,0.0,45.0,10.0,NULL,0);
INSERT INTO "feishu_mail_lock" VALUES(1,'mailbox','ann@x',NULL,0.0,45.0,10.0,NULL,0);
INSERT INTO "feishu_mail_lock" VALUES(1,'user','fred',NULL,0.0,45.0,1.0,1.0,1);
INSERT INTO "feishu_mail_lock" VALUES(1,'user','hugo','bdd798d9dc90436bbe29bbf1cad410c1',0.0,45.0,NULL,NULL,0);
INSERT INTO "feishu_mail_lock" VALUES(1,'mailbox','me/hugo','bdd798d9dc90436bbe29bbf1cad410c1',0.0,45.0,NULL,NULL,0);
CREATE TABLE feishu_mail_permit (
	turn TEXT NOT NULL, 
	app_id INTEGER NOT NULL, 
	holder TEXT NOT NULL, 
	taken DOUBLE NOT NULL, 
	lapses DOUBLE NOT NULL, 
	ended DOUBLE, 
	PRIMARY KEY (turn), 
	FOREIGN KEY(app_id) REFERENCES feishu_mail_app (id)
);
INSERT INTO "feishu_mail_permit" VALUES('bb6c5e19b6824ba09dc00bebeb563b4d',1,'vm:26797',0.0,45.0,0.0);
INSERT INTO "feishu_mail_permit" VALUES('2f02c42cf76646bdaeaed9eff85ba13e',1,'vm:26797',0.0,45.0,0.0);
INSERT INTO "feishu_mail_permit" VALUES('a747420939cd4868809c67c14685b34f',1,'vm:26797',0.0,45.0,10.0);
INSERT INTO "feishu_mail_permit" VALUES('64273095cb924d5180971363d1e3c6fe',1,'vm:26797',0.0,45.0,0.0);
INSERT INTO "feishu_mail_permit" VALUES('6d93bf1f95e7408bbc3d81e033aa61e3',1,'vm:26797',0.0,45.0,0.0);
INSERT INTO "feishu_mail_permit" VALUES('ade38f9e928045bc97a5dea824f5fd42',1,'vm:26797',0.0,45.0,0.0);
INSERT INTO "feishu_mail_permit" VALUES('e4c57e2672784106aeab47aaceb40c26',1,'vm:26797',0.0,45.0,0.0);
INSERT INTO "feishu_mail_permit" VALUES('af0ec287cbe647d384aed62d5a6f0f55',1,'vm:26797',0.0,45.0,0.0);
INSERT INTO "feishu_mail_permit" VALUES('be5c20e59bd94fc48a8742be2e504095',1,'vm:26797',0.0,45.0,0.0);
INSERT INTO "feishu_mail_permit" VALUES('bdd798d9dc90436bbe29bbf1cad410c1',1,'vm:26797',0.0,45.0,NULL);
INSERT INTO "feishu_mail_permit" VALUES('bfdda3c551a14233977bb6f801e6465d',2,'vm:26797',0.0,45.0,0.0);
CREATE TABLE feishu_mail_schema (
	id INTEGER NOT NULL, 
	version INTEGER NOT NULL, 
	time DOUBLE NOT NULL, 
	monotonic DOUBLE NOT NULL, 
	boot TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "feishu_mail_schema" VALUES(1,1,0.0,1000.0,'x');
CREATE TABLE feishu_mail_token (
	app_id INTEGER NOT NULL, 
	user_key TEXT NOT NULL, 
	access_token TEXT, 
	expires DOUBLE, 
	lifetime DOUBLE, 
	refresh_token TEXT, 
	refresh_expires DOUBLE, 
	scope TEXT, 
	lease TEXT, 
	lease_lapses DOUBLE, 
	PRIMARY KEY (app_id, user_key), 
	FOREIGN KEY(app_id) REFERENCES feishu_mail_app (id)
);
INSERT INTO "feishu_mail_token" VALUES(1,'alice','u-alice',5000.0,7200.0,'r-alice',9000.0,'mail:user_mailbox.message:send offline_access',NULL,NULL);
INSERT INTO "feishu_mail_token" VALUES(1,'bob','u-bob',6000.0,7200.0,NULL,NULL,'',NULL,NULL);
CREATE INDEX ix_feishu_mail_permit_app_id ON feishu_mail_permit (app_id);
CREATE INDEX ix_feishu_mail_lock_turn ON feishu_mail_lock (turn);
CREATE INDEX ix_feishu_mail_draft_turn ON feishu_mail_draft (turn);
CREATE INDEX feishu_mail_draft_state ON feishu_mail_draft (app_id, state, changed);
COMMIT;
