"""The words of which generated product titles are made. The brands are invented."""

from __future__ import annotations

ZH_BRANDS = (
    "云麓 青禾里 北屿 lanmu/岚木 MOYA莫雅 山止 栖白 kestra/凯斯川 乐芽 森野家 朗途 VELDA维尔达 小满记 木槿集 QIRUO 澜岸"
).split()

ZH_SEASONS = ("春季 夏季 秋季 冬季 春夏 秋冬 早春 初秋").split()

ZH_PEOPLE = ("女 男 女士 男士 女生 男生 学生 儿童 宝宝 女童 男童 情侣 中老年 大码女装 孕妇 青少年 妈妈 老人").split()

ZH_USES = ("运动 健身 跑步 瑜伽 户外 通勤 居家 休闲 登山 骑行 篮球 游泳 旅行 办公 校园 露营 训练 日常").split()

ZH_ITEMS = (
    "T恤短袖 长袖上衣 卫衣 连帽外套 冲锋衣 羽绒服 棉服 风衣 牛仔裤 休闲裤 瑜伽裤 短裤 半身裙 连衣裙 打底衫 "
    "针织衫 毛衣 衬衫 背心 内衣 睡衣套装 运动套装 跑步鞋 板鞋 帆布鞋 凉鞋 雪地靴 拖鞋 双肩包 单肩包 行李箱 "
    "腰包 帽子 围巾 手套 袜子 腰带 墨镜 护膝 瑜伽垫 哑铃 跳绳 泳衣 头盔 水杯 保温杯 饭盒 炒锅 刀具 收纳箱 台灯 "
    "四件套 枕头 窗帘 地垫 电风扇 加湿器 充电宝 数据线 蓝牙耳机 手机壳 键盘 面膜 洗面奶 防晒霜 口红 洗发水 "
    "积木玩具 毛绒公仔 婴儿推车 纸尿裤 猫砂 狗粮 茶叶 坚果礼盒 渔具 文具盒"
).split()

ZH_STYLES = (
    "韩版 日系 欧美风 复古 简约 百搭 时尚 宽松 修身 显瘦 潮牌 文艺 甜美 学院风 中国风 原宿风 ins风 港味 气质 "
    "洋气 帅气 设计感"
).split()

ZH_DETAILS = (
    "纯棉 加绒 加厚 速干 透气 防水 防滑 耐磨 轻薄 高腰 圆领 连帽 印花 纯色 条纹 刺绣 拼接 网纱 蕾丝 弹力 保暖 "
    "吸汗 防晒 减震 静音 便携 折叠 大容量 可调节 不锈钢 食品级 真皮 冰丝 羊毛 珊瑚绒 莫代尔 中长款 短款 阔腿 "
    "小脚 系带 拉链 免烫 抗皱 包邮 正品 旗舰店 官方 礼盒装 买一送一 两件装 秋冬款 春秋款 夏季薄款 初学者 "
    "专业级 家用 车载 充电式 多功能 一次性 无痕 立体"
).split()

ZH_MEASURES = ("{0}g {0}ml {0}cm {1}件装 {0}g*{1}袋 {1}双装 {0}片 {1}寸 {1}L").split()

EN_BRANDS = (
    "norvik halden tresca lumora brightfen kestrel&co ardent-oaks pellworth vantari zephra mistral-home "
    "corvane stonebrook elmsworth quillon safara dunmore tallis axelbay"
).split()

EN_ITEMS = (
    "t-shirt|running shoes|rain jacket|yoga pants|hoodie|backpack|rolling suitcase|water bottle|desk lamp|"
    "wall clock|bluetooth headphones|usb cable|wireless mouse|mechanical keyboard|laptop sleeve|phone case|"
    "memory card|ink cartridge|laser printer|file folders|ring binder|ballpoint pens|dry erase board|"
    "office chair|bookcase|coffee maker|frying pan|knife set|storage box|vacuum cleaner|space heater|"
    "air purifier|bath towel|bed sheet set|pillow|curtain panel|digital camera|camera lens|tripod|"
    "portable speaker|car stereo|dash cam|external hard drive|graphics card|projection screen|video game|"
    "puzzle|building blocks|plush toy|stroller|bike helmet|camping tent|sleeping bag|fishing reel|"
    "resistance bands|dog bed|cat litter|face cream|shampoo|sunscreen lotion|green tea|trail mix"
).split("|")

EN_MATERIALS = (
    "cotton leather aluminum bamboo ceramic fleece mesh nylon oak plastic silicone stainless-steel wool glass canvas"
).split()

EN_DETAILS = (
    "waterproof|with carrying case|for women|for men|adjustable|rechargeable|portable|heavy duty|extra large|"
    "slim fit|long sleeve|short sleeve|in retail packaging|refurbished|wireless|usb 3.0|usb-c|hdmi|high speed|"
    "dual band|noise cancelling|anti-slip|quick dry|foldable|easy clean|non-stick|dishwasher safe|letter size|"
    "assorted colors|energy efficient|remote control|touch screen|full hd|4k|replacement|2nd generation|"
    "value pack|gift set|lightweight|professional|starter kit|standard edition|for mac and windows|black|white|"
    "blue|matte|brushed|compact|indoor and outdoor|lithium battery included"
).split("|")

EN_MEASURES = (
    "{0} pack|{0} oz|{0} gb|{0} inch|{0} x {1} in|{0} ft|{0} count|{1} watts|{0} cups|{1}-piece|size {0}"
).split("|")

EN_FOR = ("for kids|for women|for men|for travel|for office|for home|for gym|for camping|for beginners|for cars").split(
    "|"
)
