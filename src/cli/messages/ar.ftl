# العربية. تُنقّى القيم بين القوسين قبل إدراجها وتُعزل اتجاهيًّا؛ الأسماء التي تبدأ بحرف n أعداد.

## الأخطاء
failure-heading = خطأ:
failure-why = السبب:
failure-next = ما العمل:
failure-retry = تطلب العقدة الانتظار { $nMs } ميلّي ثانية قبل إعادة المحاولة

error-unavailable = تعذّر الوصول إلى العقدة.
    .why = لا شيء يجيب على عنوانها، أو انقطع الاتصال.
    .next = تحقّق من `endpoint` في ملف التعريف ومن الشبكة، ثم أعد المحاولة.
error-deadline = لم تُجب العقدة في الوقت المحدد.
    .why = الخط بطيء أو العقدة مشغولة.
    .next = أعد المحاولة بقيمة أكبر للخيار --timeout إن كان للأمر.
error-unauthenticated = العقدة لا تعرف من أنت.
    .why = لم تقبل أي شهادة على هذا الاتصال.
    .next = تحقّق من `certificate` و`key` في ملف التعريف، وهل انتهت صلاحية الشهادة أو أُلغيت.
error-permission-denied = لا يحق لك القيام بذلك.
    .why = قواعد الوصول في العقدة لا تمنح هذا الحق لشهادتك.
    .next = اطلب الدور أو فريق العمل من مشغّل عقدتك؛ وقد سُجّل الرفض لديه.
error-not-found = ليس لدى العقدة شيء بهذا الاسم.
    .next = تحقّق مما طلبته.
error-no-such-bulletin = لا توجد هنا نشرة مقروءة بالمعرّف { $bulletin }.
    .why = إما أنها غير موجودة، أو لم تصل بعد، أو مُحيت، أو أن عضوك ليس من متلقّيها.
    .next = تحقّق من المعرّف. وإن لم يذكر ملف التعريف قائمة الأعضاء فاكتب MEMBER/ID.
error-publish-unanswered = لا جواب من العقدة: ربما نُشرت النشرة { $id } وربما لم تُنشر.
    .why = الخط بطيء أو مقطوع.
    .next = نفّذ هذا بأمان، فالنشرة لن تُنشر إلا مرة واحدة: { $command }
error-refused-fields = رفضت العقدة المحتوى؛ ولم يُحفظ شيء.
    .next = صحّح الحقول المذكورة أعلاه ثم أعد النشر.
error-already-exists = هذا المعرّف مستعمل لنشرة بمحتوى آخر.
    .next = إن كانت نشرة جديدة فاحذف المعرّف من المسودة. ولتعديل نشرة منشورة انشر تحديثًا (Update) يشير إليها.
error-failed-precondition = لا تستطيع العقدة ذلك في حالتها الراهنة.
    .next = انظر `barid status` أو اسأل مشغّل عقدتك.
error-overloaded = العقدة مثقلة أو بلغت حدًّا.
    .next = أعد المحاولة لاحقًا. ما نُشر من قبل في أمان.
error-unimplemented = هذه العقدة لا تعرف هذا النداء.
    .why = إصدارها أقدم من إصدار هذا البرنامج.
    .next = اسأل مشغّل عقدتك عن إصدارها (`barid status`).
error-node-failed = أخفقت العقدة أثناء الإجابة.
    .why = لم تذكر سببًا.
    .next = أعد المحاولة؛ وإن تكرّر الأمر فأبلغ مشغّل عقدتك بالوقت وبهذه الرسالة.
error-node-start = لا تستطيع العقدة أن تبدأ أو تستمر.
    .next = صحّح ما ذُكر ثم شغّلها من جديد؛ لم يضع شيء مما نُشر.
error-evidence-unreadable = الملف { $path } ليس ملف دليل.
    .next = اطلب الملف من جديد؛ فربما تلفت النسخة في الطريق.
error-no-profile = لم يُعثر على ملف تعريف.
    .why = لا يسمّي --profile ولا BARID_PROFILE ملفًّا، ولا يوجد client.toml هنا ولا في مجلد الإعدادات.
    .next = سمِّ ملفًّا: barid --profile client.toml …
error-profile-unusable = لا يمكن استعمال ملف التعريف { $path }.
    .next = صحّح الملف؛ ففي docs/command-line.md شرح كل مفتاح.
error-identity-unusable = لا يمكن استعمال الشهادة أو المفتاح أو سلطة التصديق: { $path }.
    .next = تحقّق من الملف الذي يسمّيه ملف التعريف.
error-file-unreadable = تعذّرت قراءة { $path }.
    .next = تحقّق من المسار ومن حقّك في القراءة.
error-file-unwritable = تعذّرت كتابة { $path }.
    .next = تحقّق من المجلد ومن صلاحياتك ومن المساحة الحرة.
error-file-exists = الملف { $path } موجود.
    .why = لا يُستبدل دليل سهوًا.
    .next = اختر اسمًا آخر بالخيار --output أو أضف --force.
error-draft-too-large = الملف { $path } أكبر من أن يكون نشرة ({ $nBytes } بايت).
    .next = اختصره؛ وأرسل الملفات كمرفقات.
error-draft-unreadable = الملف { $path } ليس مسودة بصيغة JSON.
    .next = صحّح الموضع المبيّن؛ ففي examples/bulletins/ مسودة لكل نوع.
error-two-ids = في المسودة المعرّف { $draft } وفي سطر الأوامر { $id }.
    .next = احذف أحدهما.
error-output = تعذّرت كتابة المخرجات.
    .next = تحقّق من وجهتها.
error-internal = أخفق البرنامج نفسه.
    .next = نرجو الإبلاغ عن ذلك مع الأمر الذي نفّذته.

## النشر
published-place = نُشرت: في السجل { $feed } في الموضع { $place }.
published-meaning = حُفظت ووُقّعت؛ فلا يمكن لأحد بعد الآن تغييرها أو إنكارها.
stored-heading = محفوظة كاملةً لدى:
stored-by = { $member } منذ { $at }
stored-unknown = يتلقّاها الأعضاء الآخرون الآن. لمعرفة من لديه: barid show ID
wait-ended = لم يؤكّد الجميع خلال { $nSeconds } ثانية. الناقص: { $missing }
    .next = النشرة منشورة وتواصل طريقها. انظر لاحقًا: barid show ID
trying-again = العقدة لا تجيب؛ محاولة جديدة بعد { $nSeconds } ثانية (لن تُنشر إلا مرة واحدة).
line-cut = انقطع الاتصال؛ محاولة جديدة بعد { $nSeconds } ثانية.

## القراءة
history-empty = لا توجد نشرة مطابقة.
history-more = هناك المزيد: استعمل --limit أو ضيّق الاختيار.
other-languages = متوفّرة أيضًا بـ: { $languages }
feed-place = { $feed }، الموضع { $place }
feed-size = { $feed }، { $nEntries ->
    [zero] بلا قيود
    [one] قيد واحد
    [two] قيدان
    [few] { $nEntries } قيود
    [many] { $nEntries } قيدًا
   *[other] { $nEntries } قيد
}
evidence-written = كُتب الدليل: { $path }
evidence-next = يستطيع كل من لديه قائمة الأعضاء التحقّق منه بلا شبكة: barid verify { $path } --roster ROSTER
health-serving = العقدة في الخدمة.
health-not-serving = العقدة ليست في الخدمة: { $status }

## الحالة
node-heading = عقدة { $member } في { $exchange }
node-not-held = محفوظ كبصمات فقط:
node-range = { $member }: الموضع { $places }، { $reason }
node-no-alarms = لا إنذارات.
node-alarms = إنذارات:
link-up = متصل
link-down = غير متصل
link-error = { $member }: { $cause }
lag-none = لا شيء
lag = { $nEntries ->
    [zero] لا قيود
    [one] قيد واحد
    [two] قيدان
    [few] { $nEntries } قيود
    [many] { $nEntries } قيدًا
   *[other] { $nEntries } قيد
} منذ { $nSeconds } ثانية
ago-seconds = قبل { $nSeconds } ثانية
ago-minutes = قبل { $nMinutes } دقيقة
ago-hours = قبل { $nHours } ساعة
ago-days = { $nDays ->
    [zero] اليوم
    [one] قبل يوم
    [two] قبل يومين
    [few] قبل { $nDays } أيام
    [many] قبل { $nDays } يومًا
   *[other] قبل { $nDays } يوم
}
publishing-yes = نعم
publishing-starting = ليس بعد: قيد التشغيل

column-sent = أُرسلت
column-tlp = TLP
column-severity = الخطورة
column-bulletin = النشرة
column-headline = الموضوع
column-peer = العضو
column-link = الاتصال
column-feed = السجل
column-lag = التأخّر
column-cosigned = التوقيع المشترك
column-custody = الحفظ
column-heartbeat = آخر إشارة حياة

verify-witnessed = مشهود: نشرها { $member } في { $feed }، الموضع { $place }، وشارك في توقيعها من الأعضاء الآخرين: { $nWitnesses }.
verify-signed-only = موقّعة فقط: نشرها { $member } في { $feed }، الموضع { $place }؛ ولم يشارك في توقيعها عدد كافٍ.
verify-disputed = متنازع عليها: موقّعة بمفتاح لـ { $member } أغلقته قائمة الأعضاء، ولم يُشهد عليها قبل ذلك.
verify-invalid = غير صحيح: الملف لا يثبت ما يقوله.

label-id = المعرّف
label-sent = أُرسلت
label-digest = البصمة
label-from = من
label-topic = الباب
label-status = الصفة
label-severity = الخطورة
label-urgency = الاستعجال
label-certainty = اليقين
label-effective = سارية من
label-expires = سارية حتى
label-releasable = حصرًا لـ
label-codes = رموز الاستعمال
label-codes-note = الاستعمال
label-purpose = الغرض
label-personal = بيانات شخصية
label-retain = تُحفظ حتى
label-references = تشير إلى
label-incidents = القضايا
label-categories = الفئة
label-onset = البداية
label-grading = التقييم
label-area = المنطقة
label-attachment = مرفق
label-bulletin = النشرة
label-feed = السجل
label-arrival = رقم الوصول
label-state = الحالة
label-changed-by = بموجب
label-acknowledged = الردود
label-cosigners = شارك في التوقيع
label-newest-cosignature = آخر توقيع مشترك
label-publishing = تنشر
label-root = الجذر
label-roster = إصدار قائمة الأعضاء
label-view-lag = تأخّر العرض
label-now = الوقت لدى العقدة
label-version = الإصدار
yes = نعم

## المفردات
banner-exercise = تمرين
banner-test = اختبار
banner-system = النظام
status-actual = فعلية
status-exercise = تمرين – ليست حالة حقيقية
status-test = اختبار – تُهمل
status-system = تخص الشبكة نفسها
msg-type-alert = تنبيه
msg-type-update = تحديث
msg-type-cancel = إلغاء
msg-type-ack = رد
msg-type-error = رفض
severity-extreme = قصوى
severity-severe = شديدة
severity-moderate = متوسطة
severity-minor = طفيفة
severity-unknown = خطورة غير معروفة
urgency-immediate = فوري
urgency-expected = وشيك
urgency-future = لاحق
urgency-past = منقضٍ
urgency-unknown = استعجال غير معروف
certainty-observed = مُعايَن
certainty-likely = مرجّح
certainty-possible = ممكن
certainty-unlikely = مستبعد
certainty-unknown = غير معروف
category-geo = جيوفيزيائي
category-met = أحوال جوية
category-safety = سلامة
category-security = أمن
category-rescue = إنقاذ
category-fire = حريق
category-health = صحة
category-env = بيئة
category-transport = نقل
category-infra = بنية تحتية
category-cbrne = مواد كيميائية وبيولوجية وإشعاعية ونووية ومتفجرات
category-other = أخرى
state-active = سارية
state-superseded = حلّت محلها أخرى
state-cancelled = ملغاة
state-expired = منتهية
undisclosed-withheld = محجوب: خارج نطاق متلقّيه
undisclosed-unfollowed = باب غير متابَع
undisclosed-not-held = غير متاح بعد لدى نظير
undisclosed-purged = مُحي
undisclosed-excluded = أُسقط عند الاستلام: خارج نطاق متلقّيه
flag-undecodable-body = تعذّر فكّ المحتوى
flag-unknown-kind = نوع لا تعرفه هذه العقدة
flag-duplicate-id = معرّف استعمله ناشره مرتين
fraud-type-stolen-blank = وثيقة فارغة مسروقة
fraud-type-stolen-from-bearer = مسروقة من حاملها
fraud-type-lost = مفقودة
fraud-type-revoked = ملغاة
fraud-type-counterfeit = مقلّدة
fraud-type-forged = مزوّرة
conveyance-road = برًّا
conveyance-rail = بالسكة الحديدية
conveyance-sea = بحرًا
conveyance-air = جوًّا
conveyance-mail = بالبريد
conveyance-pedestrian = سيرًا على الأقدام
conveyance-other = أخرى
sex-male = ذكر
sex-female = أنثى
sex-other = آخر
sex-unknown = غير معروف
colour-red = حمراء
colour-yellow = صفراء
colour-blue = زرقاء
colour-black = سوداء
colour-green = خضراء
colour-orange = برتقالية
colour-purple = بنفسجية
outcome-received = استُلمت
outcome-acting = قيد المعالجة
outcome-done = أُنجزت
outcome-refused = رُفضت
reason-recovered = استُرجعت
reason-error = خطأ
reason-resolved = حُلّت
reason-withdrawn = سُحبت
reason-other = أخرى

## حقول الأنواع
field-document-number = رقم الوثيقة
field-issuing-state = جهة الإصدار
field-document-type = نوع الوثيقة
field-fraud-type = ما حدث
field-mrz = المنطقة المقروءة آليًّا
field-date-of-issue = تاريخ الإصدار
field-date-of-expiry = تاريخ الانتهاء
field-date-of-incident = تاريخ الواقعة
field-place-of-incident = مكان الواقعة
field-period-start = الفترة من
field-period-end = الفترة إلى
field-observations = ملاحظة
field-subject = الموضوع
field-count = العدد
field-remark = ملاحظة
field-outlook = التوقعات
field-seized-at = ضُبطت في
field-locode = المكان
field-coordinates = الإحداثيات
field-goods = البضاعة
field-hs-code = رمز النظام المنسّق
field-description = الوصف
field-quantity = الكمية
field-unit = الوحدة
field-conveyance = وسيلة النقل
field-route = المسار
field-concealment = طريقة الإخفاء
field-colour = النشرة
field-family-name = اسم العائلة
field-given-names = الأسماء
field-date-of-birth = تاريخ الميلاد
field-nationalities = الجنسية
field-sex = الجنس
field-charges = التهمة
field-offence = الجرم
field-law = القانون
field-warrant = أمر القبض
field-distinguishing-marks = علامات مميزة
field-outcome = الرد
field-reason = السبب

## المساعدة
help = نشرات عابرة للحدود مع دليل: النشر والقراءة والتحقّق.
    .after = رموز الخروج: 0 تمّ، 1 إخفاق أو رفض، 2 سطر أوامر أو ملف غير صالح، 3 لم يُبلغ في الوقت المحدد؛ verify: 10 موقّع فقط، 11 متنازع عليه، 12 غير صحيح.
help-json = الكتابة للآلات: كائن JSON واحد في كل سطر.
help-lang = لغة ما يُكتب للناس [الافتراضي: لغة البيئة].
help-profile = مع أي عقدة وباسم من [الافتراضي: client.toml هنا أو في مجلد الإعدادات].
help-publish = نشر نشرة.
help-publish-file = مسودة بصيغة JSON (examples/bulletins/)؛ `-` يقرأ المدخل القياسي.
help-publish-wait-for = الانتظار حتى يحفظها آخرون كاملةً: عدد من الأعضاء أو رموزهم (`ma,tn`).
help-publish-timeout = ثواني المحاولة والانتظار؛ وتبقى النشرة منشورة بعدها.
help-publish-id = معرّف النشر، من محاولة بقيت بلا جواب.
help-watch = عرض النشرات عند وصولها.
help-watch-topic = الأبواب، مع محارف بديلة: `customs.>`، `*.documents`.
help-watch-kind = الأنواع: `seizure-report`.
help-watch-min-severity = أدنى خطورة: Minor، Moderate، Severe، Extreme.
help-watch-member = الأعضاء الناشرون: `ma`.
help-watch-from = البدء بعد رقم الوصول هذا كما يظهر مع كل نشرة (`#42`)؛ و0 هو البداية.
help-watch-subscription = البدء من حيث توقّف الاشتراك بهذا الاسم، وحفظ التقدّم فيه.
help-watch-count = التوقف بعد هذا العدد من النشرات.
help-watch-timeout = التوقف بعد هذه الثواني؛ رمز الخروج 3 إن لم يُبلغ --count.
help-history = عرض ما وصل، الأحدث أولًا.
help-history-topic = الأبواب، مع محارف بديلة: `customs.>`، `*.documents`.
help-history-kind = الأنواع: `seizure-report`.
help-history-min-severity = أدنى خطورة: Minor، Moderate، Severe، Extreme.
help-history-member = الأعضاء الناشرون: `ma`.
help-history-since = أُرسلت في هذا الوقت أو بعده: `2026-11-23T20:05:11Z` أو يوم.
help-history-until = أُرسلت في هذا الوقت أو قبله.
help-history-limit = العدد الأقصى للنشرات.
help-show = عرض نشرة وما آلت إليه.
help-show-bulletin = النشرة: `ne/0197…` أو المعرّف وحده.
help-evidence = كتابة الملف الذي يثبت نشرة بلا اتصال.
help-evidence-bulletin = النشرة: `ne/0197…` أو المعرّف وحده.
help-evidence-output = الملف المطلوب كتابته؛ `-` يكتب إلى المخرج القياسي [الافتراضي: ID.barid].
help-evidence-force = استبدال الملف إن وُجد.
help-status = عرض حالة العقدة ونظرائها.
help-health = السؤال هل العقدة في الخدمة؛ للحاويات.
help-health-timeout = ثواني انتظار الجواب.
help-health-service = خدمة gRPC المعنية؛ فارغ: العقدة كلها.
help-completions = كتابة الإكمال التلقائي لمفسّر أوامر.
help-completions-shell = مفسّر الأوامر.
help-verify = التحقّق من دليل بلا اتصال.
help-verify-file = ملف الدليل.
help-verify-roster = قائمة الأعضاء التي تثق بها.
help-node = تشغيل عقدة.
help-node-config = إعدادات العقدة.
help-node-first = فتح أول سجل لهذا العضو.
exchange-made = أُنشئ تبادل للتطوير في { $dir }. لتشغيل عقدة: barid node --first --config { $dir }/ma/node.toml
exchange-there = يوجد تبادل للتطوير في { $dir }؛ وقد تُرك كما هو.
error-exchange-init = لم يُنشأ تبادل التطوير.
    .next = اختر مجلدًا آخر أو منافذ أخرى؛ وما هو قائم يبقى كما هو.
help-exchange = إنشاء تبادل للتطوير.
help-exchange-init = إنشاء قائمة الأعضاء والسلطات والمفاتيح والإعدادات للتطوير.
help-exchange-init-dir = المجلد الذي يُنشأ فيه.
help-exchange-init-exchange = اسم التبادل.
help-exchange-init-members = الأعضاء.
help-exchange-init-base-port = منفذ التبادل للعضو الأول؛ وواجهته في المنفذ التالي، والعضو التالي بعد عشرة.
help-exchange-init-same-ports = المنافذ نفسها لكل الأعضاء: لكل عقدة جهازها أو حاويتها.
help-exchange-init-bind = العنوان الذي تستمع عليه العقد، أو اسم له؛ و`CODE` تقوم مقام رمز العضو.
help-exchange-init-bind-api = كذلك لواجهة البرمجة التي يدخل منها أهل العضو [المعتاد: مثل --bind].
help-exchange-init-host = المضيف الذي يُبلغ عنده العضو؛ و`CODE` تقوم مقام رمزه.
help-exchange-init-host-api = المضيف الذي يبلغ عنده أهل العضو واجهة البرمجة؛ و`CODE` تقوم مقام رمزه [المعتاد: مثل --host].
help-exchange-init-offline = مجلد للمفاتيح التي لا تحتاج إليها أي عقدة: مفاتيح الحكام والسلطات والحقبة التالية [المعتاد: بجانب غيرها].
help-exchange-init-owner = المستخدم والمجموعة، بالأرقام، اللذان ستكون لهما مجلدات الأعضاء.
help-exchange-init-once = ترك التبادل القائم كما هو والانتهاء بنجاح.
demo-begun = أربع عقد تعمل في أربع عمليات: الرباط وطرابلس وتونس ونيامي، لكل منها سلطتها، وكلها مرتبطة عبر TLS متبادل.
demo-alert = نشرت نيامي تنبيهًا بجواز سفر مسروق بالفرنسية؛ ووقّعت تونس أنها تحفظه كاملًا بعد { $ms } ملّي ثانية.
demo-red = كتبت الرباط إلى تونس وحدها (TLP:RED): تونس تقرؤه، وليس عند طرابلس ونيامي إلا بصمته، ولكل الأشجار الجذور نفسها.
demo-caught-up = انقطعت الكهرباء عن تونس ففاتها تنبيه؛ وبعد عودتها لحقت بكل شيء خلال { $ms } ملّي ثانية، متحقَّقًا منه ودون تكرار.
demo-held = ثبت كل شيء، في { $seconds } ثانية.
error-demo = لم يثبت العرض.
    .next = أعد تشغيله على جهاز أقل انشغالًا؛ فإن أخفق ثانيةً فهو عيب.
help-demo = عرض الأهم: أربع عقد على هذا الجهاز لثوانٍ.
